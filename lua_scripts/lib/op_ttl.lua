--- @include "lib/op_set"
-- expire and persist: only the expiry changes. Result: 1 if it is as asked, 0 if the key is missing or had none to drop.
local function apply_ttl(p, revision)
  p.keeps_elements = true
  apply_record(p, revision)
end

local function op_ttl(s, head, key, payload, old)
  if not old then
    return { result = '0' }
  end
  local kind_class, flags = byte(old, 2, 3)
  local schema, _, _, start = sub(old, 4, 5), record_times(old)
  flags = flags % 16 - flags % 4
  local p = plan_record(s, head, key, old, nil, kind_class, flags, schema, sub(old, start),
    frame_head(TTL, kind_class, flags, schema, key, 0), '', '1', apply_ttl)
  if p.expires == p.old_expires then
    -- Within one millisecond the same expiry can be given twice: the second finds nothing left to do.
    return { result = p.expires == '' and '0' or '1' }
  end
  return p
end
