--- @include "lib/op_adopt"
--- @include "lib/op_delete"
-- copy: the record of the same key in another scope of the shard is written here, elements included; or moved.
-- payload: source scope index (2), 1 to move else 0 (1), generation for copied elements.
-- Result: 1, or 0 if the source has no such key.
local function apply_copy(p, revision)
  local s = p.s
  if p.generation then
    local from, to = generation_key(p.source, p.source_generation), generation_key(s, p.generation)
    if not p.move then
      redis.call('COPY', from, to)
    else
      if redis.call('EXISTS', from) == 1 then -- a map without fields has none
        redis.call('RENAME', from, to)
      end
      redis.call('SREM', p.source.key .. ':g', p.source_generation)
    end
    add_generation(s, p.generation)
    s.size = s.size + p.grown
  end
  apply_record(p, revision)
end

-- The elements have left already: only the record goes.
local function apply_moved_away(p)
  local s = p.s
  s.size = s.size - element_bytes(p.old)
  remove_record(s, p.key, p.old)
  if p.old_expires ~= '' then
    index_expiry(s, p.key, '')
  end
end

local function op_copy(s, head, key, payload, old, gone, scopes)
  local source = scopes[u16(payload, 1) + 1]
  local from, _, problem = live(source, key)
  if problem then
    return nil, problem
  elseif not from then
    return { result = '0' }
  end
  local kind_class, flags = byte(from, 2, 3)
  local schema, created, expires, start = sub(from, 4, 5), record_times(from)
  flags = flags % 16 - flags % 4
  local value, op, logged, generation, source_generation, size = sub(from, start), SET, nil, nil, nil, nil
  logged = value
  if kind_class >= COMPOSITE then
    local count
    count, size, source_generation = read_head(from, start)
    op, generation = ADOPTED, sub(payload, 4)
    value = build_head(count, size, generation)
    logged = char(#generation) .. generation .. p32(count) .. p48(size)
  elseif NOT_LOGGED[kind_class % 16] then
    op, logged = SET + OMITTED, ''
  end
  local p = plan_record(s, head, key, old, gone, kind_class, flags, schema, value,
    frame_head(op, kind_class, flags, schema, key, #logged), logged, '1', apply_copy)
  p.created, p.expires = created, expires
  p.source, p.move, p.generation, p.source_generation, p.grown =
    source, byte(payload, 3) == 1, generation, source_generation, size
  if p.move then
    p.also = plan_removal(source, key, from, nil, apply_moved_away)
  end
  return p
end
