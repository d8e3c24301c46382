-- restore_apply: repeats changes of the log on scopes that are being restored, and lays down elements of composites.
-- Changes are absolute: repeated in order, they lead to the same end whichever of them a record had seen already.
--
-- KEYS[1] restores (see restore_begin)
-- KEYS[2] the restore
-- KEYS[3...] the staged hashes
-- ARGV[1] the restore's id
-- ARGV[2] its revision
-- ARGV[3] number of this batch: it comes behind the one before and only once; 0: it may come at any time and twice
-- ARGV[4...] per staged hash its name and what the registry says of it (lib/staged); then per change head (20 bytes:
--            what 1, staged hash 2, kind and class 1, flags 1, schema 2, 1 if the key is new, ms of its revision 6,
--            expiry 6 or zeros), key, payload (below)
-- returns: OK and the positions of the changes that had nothing to go on with, GONE if the restore was cleaned up, or
--          MIXED and the name of a scope that two are to be restored to; or LATE if a batch before this is missing.
--- @include "lib/staged"
restores, registry = KEYS[1], KEYS[2]
if not check_restore(ARGV[1], ARGV[2]) then
  return 'GONE'
end
local revision, serial = ARGV[2], tonumber(ARGV[3])
if serial > 0 then
  local last = tonumber(redis.call('HGET', registry, 's') or '0')
  if serial <= last then
    return 'OK'
  elseif serial > last + 1 then
    return 'LATE'
  end
  redis.call('HSET', registry, 's', ARGV[3])
end
local staged, at = {}, 4
for i = 3, #KEYS do
  local s = open_staged(KEYS[i], ARGV[at], ARGV[at + 1])
  if not s then
    return 'MIXED ' .. ARGV[at + 1]
  end
  staged[i - 2], at = s, at + 2
end

local function put(s, key, record, old)
  redis.call('HSET', s.key, key, record)
  if old then
    s.size = s.size + #record - #old
  else
    s.count, s.size = s.count + 1, s.size + #record + #key
  end
end

local function index(s, key, expires)
  if expires ~= '' then
    redis.call('ZADD', s.key .. ':ttl', format('%.0f', u48(expires, 1)), key)
  end
end

-- What the head of a change says about the record that it leaves.
local function header_of(head, old)
  local created, expires = sub(head, 9, 14), sub(head, 15, 20)
  if byte(head, 8) == 0 and old then
    created = record_times(old)
  end
  return byte(head, 4), byte(head, 5), sub(head, 6, 7), created, expires == NONE6 and '' or expires
end

-- A composite record: the one that is there with these elements, else nil.
local function composite_of(old, generation)
  if not old or byte(old, 2) < COMPOSITE then
    return nil
  end
  local _, _, start = record_times(old)
  local count, size, found = read_head(old, start)
  if found == generation then
    return count, size
  end
end

local function rewrite_head(s, key, old, header, count, size, generation)
  local _, expires, start = record_times(old)
  local _, before = read_head(old, start)
  local kind_class, flags, schema, created, new_expires = unpack(header)
  if expires ~= '' and new_expires == '' then
    redis.call('ZREM', s.key .. ':ttl', key)
  end
  s.size = s.size + size - before
  put(s, key, build_record(kind_class, flags, schema, revision, created, new_expires,
    build_head(count, size, generation)), old)
  index(s, key, new_expires)
end

local function read_part(payload, pos)
  local length = u32(payload, pos)
  return sub(payload, pos + 4, pos + 3 + length), pos + 4 + length
end

local function read_parts(payload, pos, most)
  local parts, part, bytes = {}, nil, 0
  while pos <= #payload and #parts < most do
    part, pos = read_part(payload, pos)
    parts[#parts + 1], bytes = part, bytes + #part
  end
  return parts, pos, bytes
end

-- How many elements there are then, and by how many bytes they have grown.
local function push(s, generation, parts, skip)
  local grown, args = 0, {}
  for i = skip + 1, #parts do
    args[#args + 1], grown = parts[i], grown + #parts[i]
  end
  call_in_chunks('RPUSH', s.base .. ':p:' .. generation, args, 1000)
  return grown
end

local function set_fields(s, generation, parts)
  local map, count, grown = s.base .. ':p:' .. generation, 0, 0
  for i = 1, #parts, 2 do
    local field, value = parts[i], parts[i + 1]
    local before = redis.call('HSTRLEN', map, field)
    if redis.call('HSET', map, field, value) == 1 then
      count, grown = count + 1, grown + #field + #value
    else
      grown = grown + #value - before
    end
  end
  return count, grown
end

local function remove_fields(s, generation, parts)
  local map, count, grown = s.base .. ':p:' .. generation, 0, 0
  for i = 1, #parts do
    local before = redis.call('HSTRLEN', map, parts[i])
    if redis.call('HDEL', map, parts[i]) == 1 then
      count, grown = count - 1, grown - #parts[i] - before
    end
  end
  return count, grown
end

-- An empty composite takes the place of what is there.
local function begin_composite(s, key, old, generation, header)
  if old then
    uncount(s, key, old)
  end
  local kind_class, flags, schema, created, expires = unpack(header)
  redis.call('SADD', s.key .. ':g', generation)
  local record = build_record(kind_class, flags, schema, revision, created, expires, build_head(0, 0, generation))
  put(s, key, record, nil)
  index(s, key, expires)
  return record
end

-- Payload: generation's length (1), generation; what comes behind it begins at the second result.
local function read_generation(payload, pos)
  local length = byte(payload, pos)
  return sub(payload, pos + 1, pos + length), pos + 1 + length
end

-- value: the payload
local function put_value(s, key, old, payload, head)
  if old then
    uncount(s, key, old)
  end
  local kind_class, flags, schema, created, expires = header_of(head, old)
  put(s, key, build_record(kind_class, flags, schema, revision, created, expires, payload), nil)
  index(s, key, expires)
end

local function remove(s, key, old)
  if old then
    uncount(s, key, old)
    redis.call('HDEL', s.key, key)
  end
end

-- Only the expiry changes.
local function touch(s, key, old, _, head)
  if not old then
    return
  end
  local created, before, start = record_times(old)
  local flags, expires = byte(old, 3), sub(head, 15, 20)
  expires = expires == NONE6 and '' or expires
  if before ~= '' and expires == '' then
    redis.call('ZREM', s.key .. ':ttl', key)
  end
  put(s, key, build_record(byte(old, 2), flags - flags % 4, sub(old, 4, 5), revision, created, expires, sub(old, start)),
    old)
  index(s, key, expires)
end

-- count after it (4), generation, elements as the log has them.
local function append(s, key, old, payload, head)
  local after = u32(payload, 1)
  local generation, pos = read_generation(payload, 5)
  local parts, _, _ = read_parts(payload, pos, 4294967296)
  local header = { header_of(head, old) }
  local count, size = composite_of(old, generation)
  if not count then
    if after ~= #parts then
      return false -- of a list that something later replaces
    end
    old, count, size = begin_composite(s, key, old, generation, header), 0, 0
  end
  if count < after - #parts then
    return true
  elseif count < after then
    size = size + push(s, generation, parts, count - (after - #parts))
    count = after
  end
  rewrite_head(s, key, old, header, count, size, generation)
end

-- count after it (4), generation, fields set and removed as the log has them.
local function merge(s, key, old, payload, head)
  local after = u32(payload, 1)
  local generation, pos = read_generation(payload, 5)
  local parts, gone
  local set = u16(payload, pos)
  parts, pos = read_parts(payload, pos + 2, 2 * set)
  gone = read_parts(payload, pos + 2, u16(payload, pos))
  local header = { header_of(head, old) }
  local count, size = composite_of(old, generation)
  if not count then
    local fields, distinct = {}, 0
    for i = 1, #parts, 2 do
      fields[parts[i]] = true
    end
    for i = 1, #gone do
      fields[gone[i]] = nil
    end
    for _ in pairs(fields) do
      distinct = distinct + 1
    end
    if after ~= distinct then
      return false -- of a map that something later replaces
    end
    old, count, size = begin_composite(s, key, old, generation, header), 0, 0
  end
  local more, grown = set_fields(s, generation, parts)
  local less, shrunk = remove_fields(s, generation, gone)
  rewrite_head(s, key, old, header, count + more + less, size + grown + shrunk, generation)
end

-- How often the scope was cleared before. Elements are left to the sweeper; those that come later have other names.
local function clear(s, _, _, payload)
  local generations = s.key .. ':g'
  if redis.call('EXISTS', generations) == 1 then
    local aside = s.base .. ':g:' .. ARGV[1] .. '-' .. payload
    redis.call('RENAME', generations, aside)
    redis.call('SADD', string.match(registry, '^[^:]*:{%d+}') .. ':trash', aside)
  end
  redis.call('UNLINK', s.key, s.key .. ':ttl')
  s.count, s.size = 0, 0
end

-- the lease's printed name, or nothing
local function set_policy(s, _, _, payload)
  local flags = byte(s.tail, 11)
  if payload == '' then
    s.tail = sub(s.tail, 1, 10) .. char(flags - flags % 2)
  else
    s.tail = sub(s.tail, 1, 10) .. char(flags - flags % 2 + 1) .. char(#payload) .. payload
  end
end

-- from fence to policy what the scope's own record says
local function set_tail(s, _, _, payload)
  s.tail = payload
end

-- a whole record
local function put_whole(s, key, old, payload)
  if old then
    uncount(s, key, old)
  end
  put(s, key, payload, nil)
  local _, expires = record_times(payload)
  index(s, key, expires)
end

-- generation, then the record up to its head. Elements that lie there stay if the key is not new.
local function put_composite(s, key, old, payload, head)
  local generation, pos = read_generation(payload, 1)
  local record = sub(payload, pos)
  local created, expires = record_times(record)
  local header = { byte(record, 2), byte(record, 3) - byte(record, 3) % 4, sub(record, 4, 5), created, expires }
  local count, size = composite_of(old, generation)
  if count and byte(head, 8) == 0 then
    rewrite_head(s, key, old, header, count, size, generation)
  else
    begin_composite(s, key, old, generation, header)
  end
end

-- generation, place of the first (4), elements (of a map fields and values in turn).
local function add_elements(s, key, old, payload)
  local generation, pos = read_generation(payload, 1)
  local place = u32(payload, pos)
  local count, size = composite_of(old, generation)
  if not count then
    return true
  end
  local parts = read_parts(payload, pos + 4, 4294967296)
  local created, expires = record_times(old)
  local flags = byte(old, 3)
  local header = { byte(old, 2), flags - flags % 4, sub(old, 4, 5), created, expires }
  if floor(byte(old, 2) / 16) == MAP then
    local more, grown = set_fields(s, generation, parts)
    rewrite_head(s, key, old, header, count + more, size + grown, generation)
  elseif count < place then
    return true
  elseif count < place + #parts then
    size = size + push(s, generation, parts, count - place)
    rewrite_head(s, key, old, header, place + #parts, size, generation)
  end
end

-- generation: a composite without elements yet
local function adopt(s, key, old, payload, head)
  begin_composite(s, key, old, (read_generation(payload, 1)), { header_of(head, old) })
end

local CHANGES = {
  put_value, remove, touch, append, merge, clear, set_policy, set_tail, put_whole, put_composite, add_elements, adopt,
}
local lost, n = {}, 0
while at <= #ARGV do
  local head, key = ARGV[at], ARGV[at + 1]
  local s = staged[u16(head, 2) + 1]
  local old = key ~= '' and redis.call('HGET', s.key, key) or nil
  if CHANGES[byte(head, 1)](s, key, old, ARGV[at + 2], head) then
    lost[#lost + 1] = ' ' .. n
  end
  at, n = at + 3, n + 1
end
for i = 1, #staged do
  close_staged(staged[i], revision)
end
return 'OK' .. concat(lost)
