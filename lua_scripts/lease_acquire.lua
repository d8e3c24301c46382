-- lease_acquire: takes a lease, or a place in its queue; asked again with the same nonce it tells how that stands.
--
-- KEYS[1] the lease: x exclusive holder, t last token, b if somebody waits or reads, w:<nonce> waiters, q last ticket,
--         r last released, ended, h:<n> ended holds
-- KEYS[2] queue: waiters by ticket
-- KEYS[3] readers: holders in shared mode, by owner
-- KEYS[4] registry: every lease of the shard that is not forgotten
-- KEYS[5] waits: by owner, the leases that it waits for
-- KEYS[6] the scope's hash, whose `$$` knows the highest token that wrote
-- ARGV[1] x exclusive, s shared
-- ARGV[2] owner
-- ARGV[3] nonce: client 8, number 4
-- ARGV[4] ttl in ms
-- ARGV[5] floor: the highest token that the client has seen
-- ARGV[6] how long it may wait in ms; 0: not at all, -1: without end
-- ARGV[7] 1 if the owner may hold it more than once
-- ARGV[8] label and the like, for people
-- ARGV[9] its ticket, if it waited before and lost its place, else 0
-- returns: 1, token, ms until it expires: granted.
--          0, place in the queue from 0, ms until the holder expires, ticket, last token: waiting.
--          -1, code, what is there (mode and holder records, or the cycle as owner and lease in turn): refused.
-- errors: BUSY HELD OTHERMODE DEADLOCK
local lease, queue, readers, registry, waits = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local mode, owner, nonce, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local byte, char, sub, floor, format = string.byte, string.char, string.sub, math.floor, string.format
local call = redis.call

local function p48(n)
  local high, low = floor(n / 4294967296), n % 4294967296
  return char(floor(high / 256), high % 256,
    floor(low / 16777216), floor(low / 65536) % 256, floor(low / 256) % 256, low % 256)
end

local function p32(n)
  return char(floor(n / 16777216), floor(n / 65536) % 256, floor(n / 256) % 256, n % 256)
end

-- What is nearly always so stands in line: free and nobody waits, or held by another. All else is `contended`.
local first = call('HMGET', lease, 'x', 't', 'b', 'q')
local x = first[1]
if mode == 'x' and (not x or x == '') and not first[3] then
  local t = call('TIME')
  local now = t[1] * 1000 + floor(t[2] / 1000)
  local last = tonumber(first[2] or '0')
  if not first[2] then
    local meta = call('HGET', KEYS[6], '$$')
    if meta and #meta >= 32 then
      local a, b, c, d, e, f, g = byte(meta, 23, 29)
      last = (((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f) * 256 + g
    end
    call('ZADD', registry, format('%.0f', now), lease)
  end
  local token = math.max(last + 1, t[1] * 1000000 + t[2], tonumber(ARGV[5]) + 1)
  local record = '\0' .. char(floor(token / 281474976710656)) .. p48(token % 281474976710656) .. p48(now + ttl) .. p48(now)
    .. p32(ttl) .. '\0\1' .. nonce .. char(#owner) .. owner .. ARGV[8]
  local text = format('%.0f', token)
  call('HSET', lease, 'x', record, 't', text)
  return { 1, text, ARGV[4] }
elseif x and x ~= '' then
  local t = call('TIME')
  local now = t[1] * 1000 + floor(t[2] / 1000)
  local a, b, c, d, e, f = byte(x, 9, 14)
  local expires = ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f
  a, b = byte(x, 25, 26)
  local at = 27 + (a * 256 + b) * 12
  local holder = sub(x, at + 1, at + byte(x, at))
  if expires > now and holder ~= owner then
    if ARGV[6] == '0' then
      return { -1, 'BUSY', 'x', x }
    end
    local found = call('HMGET', waits, holder, owner)
    local bound = tonumber(ARGV[6])
    -- The holder waits for nothing, so there is no circle; this owner for nothing else, so its line is new.
    if not found[1] and not found[2] and ARGV[9] == '0'
      and call('HSETNX', lease, 'w:' .. nonce, mode .. p32(ttl) .. p48(bound < 0 and 0 or now + bound) .. p48(now)
        .. char(#owner) .. owner .. ARGV[8]) == 1 then
      local ticket, place = format('%.0f', tonumber(first[4] or '0') + 1), call('ZCARD', queue)
      call('ZADD', queue, ticket, nonce)
      call('HSET', waits, owner, nonce .. lease .. '\n')
      -- Whoever grants it later must know how high this client has seen tokens.
      local last = format('%.0f', math.max(tonumber(first[2]), tonumber(ARGV[5])))
      call('HSET', lease, 'b', '1', 'q', ticket, 't', last)
      return { 0, place, format('%.0f', expires - now), ticket, last }
    end
  end
end

local function contended()
  --- @include "lib/lease"

  -- The owners that hold a lease, without those whose time is over.
  local function owners_of(key)
    local found = {}
    local x = redis.call('HGET', key, 'x')
    if x and x ~= '' and u48(x, 9) > now() then
      found[1] = (holder_owner(x))
    end
    local all = redis.call('HGETALL', key .. ':s')
    for i = 1, #all, 2 do
      if u48(all[i + 1], 9) > now() then
        found[#found + 1] = all[i]
      end
    end
    return found
  end

  -- Follows who waits for whom from the holders of `key`; the way back to this owner as owner and lease in turn, or nil.
  local function cycle_from(key, seen, depth)
    if seen[key] or depth > 1000 then
      return nil
    end
    seen[key] = true
    local found = owners_of(key)
    for i = 1, #found do
      if found[i] == owner then
        return { owner, key }
      end
      local lines = redis.call('HGET', waits, found[i])
      if lines then
        -- A line is a nonce of 12 bytes, which may be any, and a key without a line feed.
        local at = 1
        while at <= #lines do
          local stop = string.find(lines, '\n', at + 12, true)
          local line_nonce, next_key = sub(lines, at, at + 11), sub(lines, at + 12, stop - 1)
          at = stop + 1
          local rest = redis.call('HEXISTS', next_key, 'w:' .. line_nonce) == 1 and listens(line_nonce)
            and cycle_from(next_key, seen, depth + 1)
          if rest then
            rest[#rest + 1], rest[#rest + 2] = found[i], key
            return rest
          end
        end
      end
    end
    return nil
  end

  local x, count = holders()
  local mine = (x and holder_owner(x) == owner and x) or (count > 0 and redis.call('HGET', readers, owner)) or nil
  if mine then
    local is_exclusive = mine == x
    local nonces = holds_of(mine)
    local again = find_nonce(nonces, nonce)
    if not again and ARGV[7] ~= '1' then
      return { -1, 'HELD', is_exclusive and 'x' or 's', mine }
    elseif is_exclusive ~= (mode == 'x') then
      return { -1, 'OTHERMODE', is_exclusive and 'x' or 's', mine }
    end
    local w = redis.call('HGET', lease, 'w:' .. nonce)
    local expires = math.max(u48(mine, 9), now() + ttl)
    if w then
      dequeue(nonce, w) -- it waited, until its owner came to hold the lease otherwise
    end
    local record = rebuild(mine, expires, ttl, again and nonces or nonces .. nonce)
    put_holder(mode, owner, record)
    note_quiet()
    return { 1, format('%.0f', u64(mine, 1)), format('%.0f', expires - now()) }
  end

  if redis.call('EXISTS', queue) == 1 then
    x, count = serve(x, count)
    mine = (x and holder_owner(x) == owner and x) or redis.call('HGET', readers, owner)
    if mine and find_nonce(holds_of(mine), nonce) then
      local expires = now() + ttl
      put_holder(mode, owner, rebuild(mine, expires, ttl, holds_of(mine)))
      note_quiet()
      return { 1, format('%.0f', u64(mine, 1)), format('%.0f', ttl) }
    end
  end

  local place = redis.call('ZRANK', queue, nonce)
  if not place and not x and (mode == 's' or count == 0) and redis.call('EXISTS', queue) == 0 then
    local floor_token = tonumber(ARGV[5])
    if redis.call('HEXISTS', lease, 't') == 0 then
      local meta = redis.call('HGET', KEYS[6], '$$')
      if meta and #meta >= 32 then
        floor_token = math.max(floor_token, u64(meta, 22))
      end
    end
    local token = next_token(floor_token)
    put_holder(mode, owner, build_holder(token, now() + ttl, now(), ttl, nonce, owner, ARGV[8]), token)
    register()
    note_quiet()
    return { 1, format('%.0f', token), format('%.0f', ttl) }
  end

  if ARGV[6] == '0' then
    local there = x and { x } or redis.call('HVALS', readers)
    note_quiet()
    return { -1, 'BUSY', x and 'x' or 's', unpack(there, 1, math.min(#there, 16)) }
  end
  local ticket = ARGV[9]
  if not place then
    local cycle = cycle_from(lease, {}, 0)
    if cycle then
      return { -1, 'DEADLOCK', unpack(cycle) }
    end
    if ticket == '0' then
      ticket = redis.call('HINCRBY', lease, 'q', 1)
    end
    -- Whoever grants it later must know how high its client has seen tokens.
    if tonumber(ARGV[5]) > tonumber(redis.call('HGET', lease, 't') or '0') then
      redis.call('HSET', lease, 't', ARGV[5])
    end
    local bound = tonumber(ARGV[6])
    local deadline = bound < 0 and 0 or now() + bound
    redis.call('HSET', lease, 'b', '1', 'w:' .. nonce,
      mode .. p32(ttl) .. p48(deadline) .. p48(now()) .. char(#owner) .. owner .. ARGV[8])
    redis.call('ZADD', queue, ticket, nonce)
    redis.call('HSET', waits, owner, (redis.call('HGET', waits, owner) or '') .. nonce .. lease .. '\n')
    register()
    place = redis.call('ZRANK', queue, nonce)
  end
  return { 0, place, format('%.0f', math.max(0, soonest_expiry(x) - now())), format('%.0f', ticket),
    redis.call('HGET', lease, 't') or '0' }
end
return contended()
