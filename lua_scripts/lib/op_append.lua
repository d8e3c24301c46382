--- @include "lib/op_set"
--- @include "lib/composite"
-- append: elements go to the end of a list that lies element by element in a sibling key.
-- payload: generation length (1), generation to use if the list is new, then per element length (4) and bytes.
-- Result: the new length.
local function apply_elements(p, revision)
  local s = p.s
  if p.old then
    p.keeps_elements = true
  else
    add_generation(s, p.generation)
  end
  p.write(p)
  s.size = s.size + p.grown
  apply_record(p, revision)
end

local function push_elements(p)
  call_in_chunks('RPUSH', generation_key(p.s, p.generation), p.elements, 1000)
end

-- Where a composite stands before a partial update, or why it cannot have one.
local function open_composite(head, kind, old, payload)
  local generation_length = byte(payload, 1)
  local rest = 2 + generation_length
  if not old then
    return {
      count = 0, size = 0, generation = sub(payload, 2, 1 + generation_length), rest = rest,
      kind_class = byte(head, 2), flags = 0, schema = sub(head, 4, 5),
    }
  end
  local kind_class, flags = byte(old, 2, 3)
  if floor(kind_class / 16) ~= kind then
    return nil, 'KIND'
  end
  if is_other_class(kind_class % 16, byte(head, 2) % 16) then
    return nil, 'CLASS'
  end
  local _, _, start = record_times(old)
  local count, size, generation = read_head(old, start)
  return {
    count = count, size = size, generation = generation, rest = rest,
    kind_class = kind_class, flags = flags % 16 - flags % 4, schema = sub(old, 4, 5),
  }
end

-- The plan of a partial update: op is COUNTED and the like, rest where the elements begin in the payload.
local function plan_elements(s, head, key, payload, old, gone, at, op, count, grown, write)
  local logged = p32(count) .. char(#at.generation) .. at.generation .. sub(payload, at.rest)
  local log_head = frame_head(op, at.kind_class, at.flags, at.schema, key, #logged)
  if NOT_LOGGED[at.kind_class % 16] then
    log_head, logged = char(op + OMITTED) .. sub(log_head, 2), ''
  end
  local p = plan_record(s, head, key, old, gone, at.kind_class, at.flags, at.schema,
    build_head(count, at.size + grown, at.generation), log_head, logged, format('%.0f', count), apply_elements)
  p.generation, p.grown, p.write = at.generation, grown, write
  return p
end

local function op_append(s, head, key, payload, old, gone)
  local at, problem = open_composite(head, LIST, old, payload)
  if not at then
    return nil, problem
  end
  local elements, pos, grown = {}, at.rest, 0
  while pos <= #payload do
    local length = u32(payload, pos)
    elements[#elements + 1] = sub(payload, pos + 4, pos + 3 + length)
    pos, grown = pos + 4 + length, grown + length
  end
  local p = plan_elements(s, head, key, payload, old, gone, at, APPENDED, at.count + #elements, grown, push_elements)
  p.elements = elements
  return p
end
