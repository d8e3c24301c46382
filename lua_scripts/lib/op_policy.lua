--- @include "lib/frame"
-- policy: which lease every write of the scope must carry from now on; the scope's `$$` keeps it.
-- payload: the lease's printed name, or nothing for none. Result: 1, or 0 if it was so already.
local function apply_policy(p)
  local s = p.s
  local flags = byte(s.tail, 11)
  if p.logged == '' then
    s.tail, s.guard = sub(s.tail, 1, 10) .. char(flags - flags % 2), nil
  else
    s.tail = sub(s.tail, 1, 10) .. char(flags - flags % 2 + 1) .. char(#p.logged) .. p.logged
    s.guard = s.key .. ':lease:' .. p.logged
  end
  s.dirty = true
end

local function op_policy(s, head, key, payload)
  if (s.guard or s.key .. ':lease:') == s.key .. ':lease:' .. payload then
    return { result = '0' }
  end
  return {
    s = s, key = '', expires = '', old_rev = NONE10, apply = apply_policy, result = '1',
    log_head = frame_head(POLICY, 0, 0, '\0\0', '', #payload), logged = payload,
  }
end
