-- Big-endian integers in strings. Numbers are doubles: exact to 2^53, so 48 bits fit.
local byte, char, sub, floor, format = string.byte, string.char, string.sub, math.floor, string.format
local concat = table.concat
local NONE10 = string.rep('\0', 10)
local NONE6 = string.rep('\0', 6)

local function u16(s, i)
  local a, b = byte(s, i, i + 1)
  return a * 256 + b
end

local function u32(s, i)
  local a, b, c, d = byte(s, i, i + 3)
  return ((a * 256 + b) * 256 + c) * 256 + d
end

local function u48(s, i)
  local a, b, c, d, e, f = byte(s, i, i + 5)
  return ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f
end

local function p16(n)
  return char(floor(n / 256), n % 256)
end

local function p32(n)
  return char(floor(n / 16777216), floor(n / 65536) % 256, floor(n / 256) % 256, n % 256)
end

local function p48(n)
  return char(floor(n / 1099511627776), floor(n / 4294967296) % 256, floor(n / 16777216) % 256,
    floor(n / 65536) % 256, floor(n / 256) % 256, n % 256)
end
