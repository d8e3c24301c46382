--- @include "lib/composite"
-- A scope that is being restored, before it takes the place of the live one: a hash beside it with `:ttl` and `:g`, as a
-- scope has them, its counts in `$$`. Elements lie where the scope's own will. The caller has set `restores` and
-- `registry`, and calls nothing here before `check_restore` said yes.
-- What the registry says of it (`about`): the scope's printed name, a line feed, the name that it had, a line feed, and
-- `a` if its elements lie beside it, too.
local restores, registry
local ZERO_TAIL = string.rep('\0', 11)

-- Whether the restore is still there: one that was silent for long is cleaned up.
local function check_restore(id, revision)
  if redis.call('HGET', registry, 'r') ~= revision then
    return false
  end
  redis.call('ZADD', restores, format('%.0f', now()), id)
  return true
end

-- Nil if another scope is restored to the same place.
local function open_staged(key, name, about)
  local known = redis.call('HGET', registry, name)
  if not known then
    redis.call('HSET', registry, name, about)
  elseif known ~= about then
    return nil
  end
  local text, aside = string.match(about, '^([^\n]*)\n[^\n]*\n(.?)$')
  local s = {
    key = key, base = aside == 'a' and key or string.match(registry, '^[^:]*:{%d+}') .. ':' .. text, rev = NONE10,
    count = 0, size = 0, tail = ZERO_TAIL, empty = true,
  }
  local meta = redis.call('HGET', key, '$$')
  if meta then
    s.count, s.size, s.tail, s.empty = u32(meta, 12), u48(meta, 16), sub(meta, 22), false
  end
  return s
end

local function close_staged(s, revision)
  redis.call('HSET', s.key, '$$', '\1' .. revision .. p32(s.count) .. p48(s.size) .. s.tail)
end

-- Takes a record, and what belongs to it, out of the count; its elements go.
local function uncount(s, key, old)
  s.count, s.size = s.count - 1, s.size - #old - #key
  local _, expires, start = record_times(old)
  if expires ~= '' then
    redis.call('ZREM', s.key .. ':ttl', key)
  end
  if byte(old, 2) >= COMPOSITE then
    local _, size, generation = read_head(old, start)
    s.size = s.size - size
    redis.call('UNLINK', s.base .. ':p:' .. generation)
    redis.call('SREM', s.key .. ':g', generation)
  end
end
