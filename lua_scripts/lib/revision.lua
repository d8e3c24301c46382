--- @include "lib/bytes"
-- A revision's text ("ms-seq", as XADD gives it) and its ten bytes.
local packed_ms_text, packed_ms
local function pack_revision(id)
  local dash = string.find(id, '-', 1, true)
  local ms_text = sub(id, 1, dash - 1)
  if ms_text ~= packed_ms_text then
    packed_ms_text, packed_ms = ms_text, p48(tonumber(ms_text))
  end
  local seq = tonumber(sub(id, dash + 1))
  if seq < 256 then
    return packed_ms .. '\0\0\0' .. char(seq)
  end
  return packed_ms .. p32(seq)
end

local function show_revision(packed)
  if packed == NONE10 then
    return 'none'
  end
  return format('%.0f-%.0f', u48(packed, 1), u32(packed, 7))
end
