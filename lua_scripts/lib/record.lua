--- @include "lib/clock"
-- Records: see llmspell_dist/records.py for the layout. Offsets here are Lua's, from 1; the revision is sub(r, 6, 15).
local NOT_LOGGED = { [2] = true, [3] = true } -- state classes Bulk and Ephemeral

-- created as six bytes, expiry as six bytes or '', offset of the payload
local function record_times(r)
  local optional = byte(r, 3) % 4
  if optional == 0 then
    return sub(r, 6, 11), '', 16
  elseif optional == 1 then
    return sub(r, 16, 21), '', 22
  elseif optional == 2 then
    return sub(r, 6, 11), sub(r, 16, 21), 22
  end
  return sub(r, 16, 21), sub(r, 22, 27), 28
end

local function build_record(kind_class, flags, schema, revision, created, expires, payload)
  if created == sub(revision, 1, 6) then
    created = ''
  else
    flags = flags + 1
  end
  if expires ~= '' then
    flags = flags + 2
  end
  return char(1, kind_class, flags) .. schema .. revision .. created .. expires .. payload
end
