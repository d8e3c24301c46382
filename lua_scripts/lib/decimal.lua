--- @include "lib/bytes"
-- Exact addition of int64 decimals (doubles end at 2^53): as hi * 10^9 + lo with the sign on both halves.
local BASE = 1000000000

local function split_integer(text)
  local sign = 1
  if sub(text, 1, 1) == '-' then
    sign, text = -1, sub(text, 2)
  end
  if #text <= 9 then
    return 0, sign * tonumber(text)
  end
  return sign * tonumber(sub(text, 1, -10)), sign * tonumber(sub(text, -9))
end

-- The sum as text, or nil if it leaves int64.
local function add_integers(a, b)
  if #a < 15 and #b < 15 then
    return format('%.0f', tonumber(a) + tonumber(b) + 0)
  end
  local a_hi, a_lo = split_integer(a)
  local b_hi, b_lo = split_integer(b)
  local hi, lo = a_hi + b_hi, a_lo + b_lo
  if lo >= BASE then
    hi, lo = hi + 1, lo - BASE
  elseif lo <= -BASE then
    hi, lo = hi - 1, lo + BASE
  end
  if hi > 0 and lo < 0 then
    hi, lo = hi - 1, lo + BASE
  elseif hi < 0 and lo > 0 then
    hi, lo = hi + 1, lo - BASE
  end
  local negative = hi < 0 or lo < 0
  hi, lo = math.abs(hi), math.abs(lo)
  if hi > 9223372036 or (hi == 9223372036 and lo > (negative and 854775808 or 854775807)) then
    return nil
  end
  local text = hi == 0 and format('%.0f', lo) or format('%.0f%09.0f', hi, lo)
  return negative and '-' .. text or text
end

local function is_integer_text(text)
  return string.find(text, '^%-?%d+$') ~= nil
end
