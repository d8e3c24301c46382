--- @include "lib/scope"
--- @include "lib/revision"
-- The frames of a log entry, one a change; llmspell_dist/changes.py has the layout. The first byte of the
-- entry's field `c` is the format version; a frame of the same scope as the frame before does not repeat its text.
local SET, DELETE, EXPIRED, TTL, COUNTED, APPENDED, MERGED, ADOPTED, CLEARED = 1, 2, 3, 4, 5, 6, 7, 8, 9
local POLICY, BROKEN, RESTORED = 11, 12, 13 -- 10 is a copy, which the log has as a set or adopt
local OMITTED = 128

local function frame_head(op, kind_class, flags, schema, key, size)
  return char(op, kind_class, flags) .. schema .. p16(#key) .. p32(size)
end

-- head: the first eleven bytes; expires: six bytes or ''
-- named: whether the frame before was of the same scope
local function frame(head, s, named, previous, expires, key, payload)
  local scope_part = '\0\0'
  local scope_text = ''
  if not named then
    scope_part, scope_text = p16(#s.text), s.text
  end
  if expires == '' then
    expires = NONE6
  end
  return head .. scope_part .. previous .. s.rev .. expires .. scope_text .. key .. payload
end
