-- restore_swap: puts restored scopes in the place of the live ones, all of those given or none; sent twice, it happens
-- once. A scope that the restore does not have is emptied.
--
-- KEYS[1] log stream of the shard
-- KEYS[2] due: sorted set of the shard's scopes
-- KEYS[3] trash: sets of generations left behind
-- KEYS[4] registry of the shard's leases
-- KEYS[5] restores (see restore_begin)
-- KEYS[6] the restore
-- KEYS[7...] the scopes' hashes
-- ARGV[1] the restore's id
-- ARGV[2] its revision
-- ARGV[3] what the log says about it (MessagePack), but for the last value: how many keys
-- ARGV[4] log metadata
-- ARGV[5] 1 if leases that are held do not matter
-- ARGV[6] leases registered since this ms are looked for here; the others are given
-- ARGV[7...] per scope: its printed name; the staged one's name; what the registry says of it, or nothing to empty the
--            scope; the revision that the live scope must have or nothing; how many of its leases follow; their keys
-- returns: OK, the revision, a list with the number of keys per scope, a list of the leases that are held.
--          Or why nothing was changed: GONE (the restore was cleaned up); LEASED and scope, lease, holder's record;
--          MOVED and scope, its revision; UNFIT and scope (it is not as it was laid down).
--- @include "lib/scope"
--- @include "lib/log"
--- @include "lib/bell"
local log, due, trash, leases, restores, registry = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local id, revision, force = ARGV[1], ARGV[2], ARGV[5] == '1'
local ZERO_TAIL = string.rep('\0', 11)
if redis.call('HGET', registry, 'r') ~= revision then
  return { 'GONE' }
end

local function holder_of(lease)
  local x = redis.pcall('HGET', lease, 'x')
  if type(x) == 'string' and #x >= 27 and u48(x, 9) > now() then
    return x
  end
  local all = redis.pcall('HVALS', lease .. ':s')
  if not all.err then
    for i = 1, #all do
      if u48(all[i], 9) > now() then
        return all[i]
      end
    end
  end
end

-- Whether the token a, eight bytes, is higher than b.
local function higher(a, b)
  for i = 1, 8 do -- byte by byte: Lua compares strings as the locale sorts them
    local one, other = byte(a, i), byte(b, i)
    if one ~= other then
      return one > other
    end
  end
  return false
end

local scopes, by_key, done, swapped, at = {}, {}, {}, nil, 7
for i = 7, #KEYS do
  local s = open_scope(KEYS[i], ARGV[at])
  s.name, s.about, s.expected, s.leases = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], {}
  local given = tonumber(ARGV[at + 4])
  for j = 1, given do
    s.leases[j] = ARGV[at + 4 + j]
    s.leases[ARGV[at + 4 + j]] = true
  end
  at = at + 5 + given
  scopes[#scopes + 1], by_key[s.key] = s, s
  local state = redis.call('HGET', registry, s.name)
  local was, count = string.match(state or '', '^=(%S+) (%d+)$')
  if was then
    swapped, done[#done + 1] = was, tonumber(count)
  end
end
if swapped then
  return { 'OK', swapped, done, {} }
end

local recent = redis.call('ZRANGEBYSCORE', leases, ARGV[6], '+inf')
for i = 1, #recent do
  local s = by_key[string.match(recent[i], '^(.*):lease:[^:]*$')]
  if s and not s.leases[recent[i]] then
    s.leases[#s.leases + 1] = recent[i]
  end
end

local held = {}
for i = 1, #scopes do
  local s, token = scopes[i], 0
  fetch_scope(s)
  s.new_tail, s.keys, s.bytes = ZERO_TAIL, 0, 0
  if s.about ~= '' then
    local staged = registry .. ':' .. s.name
    local meta = redis.call('HGET', staged, '$$')
    if not meta or redis.call('HLEN', staged) ~= u32(meta, 12) + 1
      or redis.call('HGET', registry, s.name) ~= s.about then
      return { 'UNFIT', s.text }
    end
    s.keys, s.bytes, s.new_tail = u32(meta, 12), u48(meta, 16), sub(meta, 22)
  end
  if s.expected ~= '' and s.expected ~= s.rev then
    return { 'MOVED', s.text, s.rev }
  end
  for j = 1, #s.leases do
    local holder = holder_of(s.leases[j])
    if holder and not force then
      return { 'LEASED', s.text, s.leases[j], holder }
    elseif holder then
      held[#held + 1] = s.leases[j]
      -- Higher than every token that was given out, so whoever holds it now writes no more.
      token = math.max(token, tonumber(redis.call('HGET', s.leases[j], 't') or '0') + 1)
    end
  end
  local fence = sub(s.tail, 1, 8)
  if higher(sub(s.new_tail, 1, 8), fence) then
    fence = sub(s.new_tail, 1, 8)
  end
  if token > 0 then
    local packed = '\0' .. char(floor(token / 281474976710656)) .. p48(token % 281474976710656)
    if higher(packed, fence) then
      fence = packed
    end
  end
  s.new_tail = fence .. sub(s.new_tail, 9)
end
-- Of the wrong type: better an error now.
redis.call('ZCARD', due)
redis.call('SCARD', trash)

local frames = { '\1' }
for i = 1, #scopes do
  local s = scopes[i]
  local said = ARGV[3] .. '\206' .. p32(s.keys)
  frames[#frames + 1] = frame(frame_head(RESTORED, 0, 0, '\0\0', '', #said), s, false, NONE10, '', '', said)
  -- What the scope demands from here on, so that who reads the log alone knows it.
  local lease = ''
  if byte(s.new_tail, 11) % 2 == 1 then
    lease = sub(s.new_tail, 13, 12 + byte(s.new_tail, 12))
  end
  frames[#frames + 1] = frame(frame_head(POLICY, 0, 0, '\0\0', '', #lease), s, true, NONE10, '', '', lease)
end
local entry = redis.call('XADD', log, '*', 'c', concat(frames), 'm', ARGV[4], 'o', string.rep('\0', 14))
local counts = {}
for i = 1, #scopes do
  local s, staged = scopes[i], registry .. ':' .. scopes[i].name
  local before = s.rev
  s.rev = pack_revision(entry)
  if redis.call('EXISTS', s.key .. ':g') == 1 then
    local aside = s.key .. ':g:' .. show_revision(s.rev)
    redis.call('RENAME', s.key .. ':g', aside)
    redis.call('SADD', trash, aside)
  end
  redis.call('UNLINK', s.key, s.key .. ':ttl')
  if s.about ~= '' then
    redis.call('RENAME', staged, s.key)
    for _, beside in ipairs({ ':ttl', ':g' }) do
      if redis.call('EXISTS', staged .. beside) == 1 then
        redis.call('RENAME', staged .. beside, s.key .. beside)
      end
    end
  end
  redis.call('HSET', s.key, '$$', '\1' .. s.rev .. p32(s.keys) .. p48(s.bytes) .. s.new_tail)
  local soonest = redis.call('ZRANGE', s.key .. ':ttl', 0, 0, 'WITHSCORES')[2]
  redis.call('ZADD', due, soonest or (s.keys == 0 and format('%.0f', now() + EMPTY_SCOPE_MS)) or '+inf', s.text)
  redis.call('HSET', registry, s.name, '=' .. entry .. ' ' .. format('%.0f', s.keys))
  counts[i] = s.keys
  local heard = redis.pcall('PUBLISH', s.key, s.rev .. before)
  if heard ~= 0 and type(heard) == 'number' then
    tell(log, s, before)
  end
end
redis.call('ZADD', restores, format('%.0f', now()), id)
return { 'OK', entry, counts, held }
