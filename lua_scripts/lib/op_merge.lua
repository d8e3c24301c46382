--- @include "lib/op_append"
-- merge: some fields of a map are set, some removed; the map lies field by field in a sibling key.
-- payload: generation length (1), generation to use if the map is new, number of fields to set (2), then per field
-- length (4), field, length (4), value; number of fields to remove (2), then per field length (4), field.
-- Result: how many fields the map has now.
local function write_fields(p)
  local key = generation_key(p.s, p.generation)
  call_in_chunks('HSET', key, p.elements, 2000)
  call_in_chunks('HDEL', key, p.removed, 1000)
end

local function read_part(payload, at)
  local length = u32(payload, at)
  return sub(payload, at + 4, at + 3 + length), at + 4 + length
end

local function op_merge(s, head, key, payload, old, gone)
  local state, problem = open_composite(head, MAP, old, payload)
  if not state then
    return nil, problem
  end
  local map, elements, removed = generation_key(s, state.generation), {}, {}
  local count, grown, at = state.count, 0, state.rest + 2
  for _ = 1, u16(payload, state.rest) do
    local field, value
    field, at = read_part(payload, at)
    value, at = read_part(payload, at)
    elements[#elements + 1] = field
    elements[#elements + 1] = value
    grown = grown + #value
    if old and redis.call('HEXISTS', map, field) == 1 then
      grown = grown - redis.call('HSTRLEN', map, field)
    else
      count, grown = count + 1, grown + #field
    end
  end
  local removals = u16(payload, at)
  at = at + 2
  for _ = 1, removals do
    local field
    field, at = read_part(payload, at)
    if old and redis.call('HEXISTS', map, field) == 1 then
      removed[#removed + 1] = field
      count, grown = count - 1, grown - #field - redis.call('HSTRLEN', map, field)
    end
  end
  local p = plan_elements(s, head, key, payload, old, gone, state, MERGED, count, grown, write_fields)
  p.elements, p.removed = elements, removed
  return p
end
