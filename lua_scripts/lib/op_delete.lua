--- @include "lib/op_set"
-- delete: the record goes. Result: 1 if it was there, else 0 and nothing is changed.
local function apply_removal(p)
  local s, old = p.s, p.old
  if byte(old, 2) >= COMPOSITE then
    drop_generation(s, old)
  end
  remove_record(s, p.key, old)
  if p.old_expires ~= '' then
    index_expiry(s, p.key, '')
  end
end

local function plan_removal(s, key, old, result, apply)
  local _, old_expires = record_times(old)
  return {
    s = s, key = key, old = old, old_expires = old_expires, expires = '', apply = apply, result = result,
    log_head = frame_head(DELETE, byte(old, 2), 0, sub(old, 4, 5), key, 0), logged = '',
  }
end

local function op_delete(s, head, key, payload, old)
  if not old then
    return { result = '0' }
  end
  return plan_removal(s, key, old, '1', apply_removal)
end
