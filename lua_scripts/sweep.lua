-- sweep: removes what has expired, a bounded number of keys a call; any process may call it, one in an interval works.
--
-- KEYS[1] log stream of the shard
-- KEYS[2] due: sorted set of the shard's scopes
-- KEYS[3] ctl: the shard's settings
-- KEYS[4] trash: sets of generations left behind by clear
-- KEYS[5] registry: the leases of the shard, by when to see whether they can be forgotten
-- KEYS[6] waits: by owner, the leases that it waits for
-- ARGV[1] interval in ms: if another call worked less than this ago, nothing is done
-- ARGV[2] most keys to remove
-- ARGV[3] prefix of the shard's keys
-- ARGV[4] 1 to be told what was removed
-- returns: 1 if this call worked, else 0; keys removed; 1 if more is due; if asked for, a list by scope: its text, the
-- revision, the keys.
--- @include "lib/composite"
--- @include "lib/log"
--- @include "lib/bell"
--- @include "lib/restores"
local log, due, ctl, trash = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local lease, queue, readers, registry, waits = nil, nil, nil, KEYS[5], KEYS[6]
--- @include "lib/lease"
local LEASE_KEPT_MS = 86400000 -- a lease that nobody holds is remembered so long
local RESTORE_MS = 3600000 -- a restore that was silent for so long does not go on
local most = tonumber(ARGV[2])
local removals = {}
local last = tonumber(redis.call('HGET', ctl, 'swept') or '0')
if now() >= last and now() - last < tonumber(ARGV[1]) then
  return { 0, 0, 0, removals }
end

local function forget_if_empty(s, text)
  local oldest = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1]
  local changed_ms = u48(s.rev, 1)
  if s.count > 0 or byte(s.tail, 11) > 0 or (oldest and tonumber(string.match(oldest[1], '^%d+')) <= changed_ms) or now() - changed_ms < EMPTY_SCOPE_MS then
    return false
  end
  -- Nobody can tell any more what was in the scope before; get_at asks for this.
  local forgotten = redis.call('HGET', ctl, 'forgotten')
  if not forgotten or tonumber(string.match(forgotten, '^%d+')) <= changed_ms then
    redis.call('HSET', ctl, 'forgotten', show_revision(s.rev))
  end
  redis.call('UNLINK', s.key)
  redis.call('ZREM', due, text)
  return true
end

local function sweep_scope(text)
  local s = open_scope(ARGV[3] .. ':' .. text, text)
  local keys = redis.call('ZRANGEBYSCORE', s.key .. ':ttl', '-inf', format('%.0f', now()), 'LIMIT', 0, most)
  for i = 1, #keys do
    want(s, keys[i])
  end
  fetch_scope(s)
  if s.damaged then
    redis.call('ZADD', due, 'XX', '+inf', text)
    return 0
  end
  local frames, gone, stale = { '\1' }, {}, {}
  for i = 1, #keys do
    local key = keys[i]
    local _, r = live(s, key)
    if r then
      local _, expires = record_times(r)
      frames[#frames + 1] =
        frame(frame_head(EXPIRED, byte(r, 2), 0, sub(r, 4, 5), key, 0), s, #gone > 0, sub(r, 6, 15), expires, key, '')
      gone[#gone + 1] = key
    else
      stale[#stale + 1] = key
    end
  end
  if #gone > 0 then
    -- A sweep frees memory, so it may go on when the server is full.
    local id = append_freeing(log, due, concat(frames), '', string.rep('\0', 14))
    local revision = pack_revision(id)
    for i = 1, #gone do
      local key = gone[i]
      local r = s.recs[key]
      if byte(r, 2) >= COMPOSITE then
        drop_generation(s, r)
      end
      remove_record(s, key, r)
      index_expiry(s, key, '')
    end
    local before = s.rev
    s.rev = revision
    flush_scope(s, due)
    local heard = redis.pcall('PUBLISH', s.key, revision .. before)
    if heard ~= 0 and type(heard) == 'number' then
      tell(log, s, before)
    end
    if ARGV[4] == '1' then
      removals[#removals + 1] = { text, id, gone }
    end
  end
  call_in_chunks('ZREM', s.key .. ':ttl', stale, 1000)
  if not forget_if_empty(s, text) then
    local next_key = redis.call('ZRANGE', s.key .. ':ttl', 0, 0, 'WITHSCORES')
    local at = next_key[2] or (s.count == 0 and format('%.0f', now() + EMPTY_SCOPE_MS)) or '+inf'
    redis.call('ZADD', due, 'XX', at, text)
  end
  return #gone
end

-- The elements that clears left behind, at most 100 in a call; whether there may be more.
local function empty_trash()
  local left = 100
  while left > 0 do
    local aside = redis.call('SRANDMEMBER', trash)
    if not aside then
      return false
    end
    local generations = redis.call('SPOP', aside, left)
    local scope_key = string.match(aside, '^(.*):g:[^:]*$')
    for i = 1, #generations do
      redis.call('UNLINK', scope_key .. ':p:' .. generations[i])
    end
    if #generations < left then
      redis.call('SREM', trash, aside)
    end
    left = left - #generations - 1
  end
  return true
end

-- When the present lease was last held, as far as is known.
local function last_held()
  local found = redis.call('HMGET', lease, 'x', 'ended')
  local last = 0
  if found[1] and found[1] ~= '' then
    last = u48(found[1], 9)
  end
  local ended = found[2] and redis.call('HGET', lease, 'h:' .. found[2] % ENDED)
  if ended then
    last = math.max(last, u48(ended, 2))
  end
  local all = redis.call('HVALS', readers)
  for i = 1, #all do
    last = math.max(last, u48(all[i], 9))
  end
  return last
end

-- Leases that nobody has held for long: nobody waits for them, or whoever did is gone. Server time stands in for their
-- tokens. A lease that was held since it was looked at is looked at again a day after that.
local function forget_leases()
  local old = redis.call('ZRANGEBYSCORE', registry, '-inf', format('%.0f', now() - LEASE_KEPT_MS), 'LIMIT', 0, 100)
  for i = 1, #old do
    lease, queue, readers = old[i], old[i] .. ':q', old[i] .. ':s'
    local last = last_held()
    if last + LEASE_KEPT_MS > now() then
      redis.call('ZADD', registry, format('%.0f', last), lease)
    else
      local waiting = redis.call('ZRANGE', queue, 0, 999)
      for j = 1, #waiting do
        local w = redis.call('HGET', lease, 'w:' .. waiting[j])
        if w then
          forget_wait(waiting[j], w)
        end
      end
      redis.call('UNLINK', lease, queue, readers)
      redis.call('ZREM', registry, lease)
    end
  end
  return #old == 100
end

-- What a restore left that was killed.
local function forget_restores()
  local restores = ARGV[3] .. ':restores'
  local silent = redis.call('ZRANGEBYSCORE', restores, '-inf', format('%.0f', now() - RESTORE_MS), 'LIMIT', 0, 1)[1]
  return silent and (clean_restore(restores, trash, ARGV[3], silent, 100) or true)
end

local removed, more = 0, 0
local scopes = redis.call('ZRANGEBYSCORE', due, '-inf', format('%.0f', now()), 'LIMIT', 0, 100)
for i = 1, #scopes do
  removed = removed + sweep_scope(scopes[i])
  if removed >= most then
    more = 1
    break
  end
end
if #scopes == 100 or empty_trash() or forget_leases() or forget_restores() then
  more = 1
end
if more == 0 then
  redis.call('HSET', ctl, 'swept', format('%.0f', now()))
end
return { 1, removed, more, removals }
