--- @include "lib/frame"
-- set: the whole value is replaced.
-- payload: the encoded value
-- modes: 0 as it is, 1 set, 2 none, 3 set unless there is one, 4 set if the key is there
local function expiry_after(head, old_expires, old)
  local mode = byte(head, 12)
  if mode == 0 then
    return old_expires
  elseif mode == 1 or (mode == 3 and old_expires == '') or (mode == 4 and old) then
    return p48(now() + u48(head, 13))
  elseif mode == 3 then
    return old_expires
  end
  return ''
end

-- Writes the planned record over what is there.
local function apply_record(p, revision)
  local s, old = p.s, p.old or p.gone
  if old and byte(old, 2) >= COMPOSITE and not p.keeps_elements then
    drop_generation(s, old)
  end
  put_record(s, p.key,
    build_record(p.kind_class, p.flags, p.schema, revision, p.created or sub(revision, 1, 6), p.expires, p.payload), old)
  if p.expires ~= p.old_expires then
    index_expiry(s, p.key, p.expires)
  end
end

-- A plan holds all that is needed to write the log entry and then the data; it has changed nothing yet.
local function plan_record(s, head, key, old, gone, kind_class, flags, schema, payload, log_head, logged, result, apply)
  local created, old_expires = false, ''
  if old then
    created, old_expires = record_times(old)
  elseif gone then
    created, old_expires = record_times(gone)
    created = false
  end
  return {
    s = s, key = key, old = old, gone = gone, created = created, old_expires = old_expires,
    expires = expiry_after(head, old and old_expires or '', old), kind_class = kind_class, flags = flags, schema = schema,
    payload = payload, log_head = log_head, logged = logged, result = result, apply = apply or apply_record,
    trash = false,
  }
end

local function op_set(s, head, key, payload, old, gone)
  local _, kind_class, flags = byte(head, 1, 3)
  local log_head, logged = sub(head, 1, 11), payload
  if NOT_LOGGED[kind_class % 16] then
    log_head, logged = char(SET + OMITTED) .. sub(head, 2, 11), ''
  end
  return plan_record(s, head, key, old, gone, kind_class, flags, sub(head, 4, 5), payload, log_head, logged)
end
