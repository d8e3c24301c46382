--- @include "lib/op_append"
-- adopt: a staged generation (a list, a map or the chunks of a large value) becomes the value of the key.
-- payload: generation length (1), generation, count (4), bytes (6), then the whole encoded value for the log, or nothing.
-- Error: STAGED if the staged elements are gone or incomplete.
local LENGTH = { [LIST] = 'LLEN', [MAP] = 'HLEN', [BLOB] = 'LLEN' }

local function apply_adoption(p, revision)
  redis.call('PERSIST', generation_key(p.s, p.generation))
  add_generation(p.s, p.generation)
  p.s.size = p.s.size + p.grown
  apply_record(p, revision)
end

local function op_adopt(s, head, key, payload, old, gone)
  local _, kind_class, flags = byte(head, 1, 3)
  local length = byte(payload, 1)
  local generation, count = sub(payload, 2, 1 + length), u32(payload, 2 + length)
  if redis.call(LENGTH[floor(kind_class / 16)], generation_key(s, generation)) ~= count then
    return nil, 'STAGED'
  end
  local size = u48(payload, 6 + length)
  local logged = payload
  if NOT_LOGGED[kind_class % 16] then
    logged = sub(payload, 1, 11 + length)
  end
  local p = plan_record(s, head, key, old, gone, kind_class, flags, sub(head, 4, 5), build_head(count, size, generation),
    frame_head(ADOPTED, kind_class, flags, sub(head, 4, 5), key, #logged), logged, nil, apply_adoption)
  p.generation, p.grown = generation, size
  return p
end
