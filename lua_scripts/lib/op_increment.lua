--- @include "lib/op_set"
--- @include "lib/composite"
--- @include "lib/decimal"
-- increment: adds to a number; integers exactly within int64, floats as doubles. A missing key counts as 0.
-- payload: the addend as text. Result: the new number as text.
local function op_increment(s, head, key, payload, old, gone)
  local kind_class, schema, current = byte(head, 2), sub(head, 4, 5), '0'
  if old then
    kind_class, schema = byte(old, 2), sub(old, 4, 5)
    if floor(kind_class / 16) ~= NUMBER then
      return nil, 'KIND'
    elseif is_other_class(kind_class % 16, byte(head, 2) % 16) then
      return nil, 'CLASS'
    end
    local _, _, start = record_times(old)
    current = sub(old, start)
  end
  local total
  if is_integer_text(current) and is_integer_text(payload) then
    total = add_integers(current, payload)
  else
    local sum = tonumber(current) + tonumber(payload)
    if sum == sum and sum ~= math.huge and sum ~= -math.huge then
      total = format('%.17g', sum)
      if is_integer_text(total) then
        total = total .. '.0'
      end
    end
  end
  if not total then
    return nil, 'OVERFLOW'
  end
  local log_head, logged = frame_head(COUNTED, kind_class, 0, schema, key, #total), total
  if NOT_LOGGED[kind_class % 16] then
    log_head, logged = frame_head(COUNTED + OMITTED, kind_class, 0, schema, key, #total), ''
  end
  return plan_record(s, head, key, old, gone, kind_class, 0, schema, total, log_head, logged, total)
end
