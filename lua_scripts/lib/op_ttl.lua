--- @include "lib/op_set"
-- expire and persist: only the expiry changes. Result: 1 if it did, else 0.
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
  flags = flags - flags % 4
  local p = plan_record(s, head, key, old, nil, kind_class, flags, schema, sub(old, start),
    frame_head(TTL, kind_class, flags, schema, key, 0), '', '1', apply_ttl)
  if p.expires == p.old_expires then
    return { result = '0' }
  end
  return p
end
