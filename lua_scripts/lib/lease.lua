--- @include "lib/clock"
-- Leases: who holds one, who waits for it, in which order they are served. The caller has set `lease` (the hash),
-- `queue`, `readers`, `registry` and `waits`, the keys that lease_acquire.lua describes. An uncontended acquire or
-- release does without all this (functions cost time in every call, docs/design/0001).
--
-- holder record: token 8, expires 6, since 6, ttl 4, holds 2, a nonce of 12 per hold, owner length 1, owner, info
-- waiter record: mode 1 ('x' or 's'), ttl 4, deadline 6 (0: none), since 6, owner length 1, owner, info
-- The first eight bytes of a nonce are the client that waits or holds; its channel is woken by PUBLISH.
local ENDED = 16 -- so many ended holds are remembered

local function p64(n)
  return '\0' .. char(floor(n / 281474976710656)) .. p48(n % 281474976710656)
end

local function u64(s, i)
  return byte(s, i + 1) * 281474976710656 + u48(s, i + 2)
end

local function holder_owner(r)
  local at = 27 + u16(r, 25) * 12
  return sub(r, at + 1, at + byte(r, at)), at
end

local function build_holder(token, expires, since, ttl, nonces, owner, info)
  return p64(token) .. p48(expires) .. p48(since) .. p32(ttl) .. p16(#nonces / 12) .. nonces .. char(#owner) .. owner .. info
end

-- The record as it is, with another expiry and other holds.
local function rebuild(r, expires, ttl, nonces)
  local _, at = holder_owner(r)
  return sub(r, 1, 8) .. p48(expires) .. sub(r, 15, 20) .. p32(ttl) .. p16(#nonces / 12) .. nonces .. sub(r, at)
end

local function find_nonce(nonces, nonce)
  for i = 1, #nonces, 12 do
    if sub(nonces, i, i + 11) == nonce then
      return i
    end
  end
  return nil
end

local function holds_of(r)
  return sub(r, 27, 26 + u16(r, 25) * 12)
end

-- The end of a hold, for the history: how (1 released, 2 expired, 3 broken; 10 more of a reader's), when, of a broken one
-- what was said about it (length 2, text), the holder.
local function note_end(r, how, at, said)
  local n = redis.call('HINCRBY', lease, 'ended', 1)
  redis.call('HSET', lease, 'h:' .. n % ENDED, char(how) .. p48(at) .. (said and p16(#said) .. said or '') .. r)
end

-- Removes what has expired; the exclusive holder or nil, and how many readers hold it.
local function holders()
  local x = redis.call('HGET', lease, 'x')
  if x == '' then
    x = nil
  elseif x and u48(x, 9) <= now() then
    redis.call('HDEL', lease, 'x')
    note_end(x, 2, u48(x, 9))
    x = nil
  end
  local count = redis.call('HLEN', readers)
  if count > 0 then
    local all = redis.call('HGETALL', readers)
    for i = 1, #all, 2 do
      if u48(all[i + 1], 9) <= now() then
        redis.call('HDEL', readers, all[i])
        note_end(all[i + 1], 12, u48(all[i + 1], 9))
        count = count - 1
      end
    end
  end
  return x or nil, count
end

local function hex(raw)
  return (string.gsub(raw, '.', function(c) return format('%02x', byte(c)) end))
end

-- The client's channel: the shard's prefix as the queue's key has it, and the client.
local function channel_of(nonce)
  return string.match(lease, '^[^:]*:{%d+}') .. ':wake:' .. hex(sub(nonce, 1, 8))
end

local function wake(nonce, message)
  return redis.pcall('PUBLISH', channel_of(nonce), nonce .. message)
end

-- Whether the client of a waiter is there to be woken.
local function listens(nonce)
  local reply = redis.pcall('PUBSUB', 'NUMSUB', channel_of(nonce))
  return type(reply) ~= 'table' or reply.err or tonumber(reply[2]) > 0
end

local function waiter_owner(w)
  return sub(w, 19, 18 + byte(w, 18))
end

-- `waits` tells, by owner, which leases it waits for: a line of nonce and key for each.
local function forget_wait(nonce, w)
  local owner = waiter_owner(w)
  local lines = redis.call('HGET', waits, owner)
  local line = nonce .. lease .. '\n'
  local at = lines and string.find(lines, line, 1, true)
  if at then
    lines = sub(lines, 1, at - 1) .. sub(lines, at + #line)
    if lines == '' then
      redis.call('HDEL', waits, owner)
    else
      redis.call('HSET', waits, owner, lines)
    end
  end
end

local function dequeue(nonce, w)
  redis.call('ZREM', queue, nonce)
  redis.call('HDEL', lease, 'w:' .. nonce)
  forget_wait(nonce, w)
end

-- A token is higher than every one before, of this lease and, for what it knows, of the asking client. Server time
-- stands in for tokens that are forgotten.
local function next_token(floor_token)
  local last = tonumber(redis.call('HGET', lease, 't') or '0')
  local t = redis.call('TIME')
  return math.max(last + 1, t[1] * 1000000 + t[2], floor_token + 1)
end

-- token: of a new grant; nil for one that is only written anew, so that the last token never falls back.
local function put_holder(mode, owner, record, token)
  if mode == 'x' then
    redis.call('HSET', lease, 'x', record)
  else
    redis.call('HSET', readers, owner, record)
    redis.call('HSET', lease, 'b', '1')
  end
  if token then
    redis.call('HSET', lease, 't', format('%.0f', token))
  end
end

-- The registry knows every lease that is remembered; the sweeper sees there when it may be forgotten.
local function register()
  redis.call('ZADD', registry, 'NX', format('%.0f', now()), lease)
end

-- Field `b` sends everybody the long way while somebody waits or reads; called when that may have ended.
local function note_quiet()
  if redis.call('EXISTS', queue, readers) == 0 then
    redis.call('HDEL', lease, 'b')
  end
end

local function soonest_expiry(x)
  if x then
    return u48(x, 9)
  end
  local soonest
  local all = redis.call('HVALS', readers)
  for i = 1, #all do
    local at = u48(all[i], 9)
    if not soonest or at < soonest then
      soonest = at
    end
  end
  return soonest or now()
end

-- Grants the lease to those at the head of the queue that can have it. Who does not hear it is gone and is skipped.
local function serve(x, count)
  while true do
    local head = redis.call('ZRANGE', queue, 0, 0)[1]
    if not head then
      break
    end
    local w = redis.call('HGET', lease, 'w:' .. head)
    if not w then
      redis.call('ZREM', queue, head)
    else
      local mode, ttl, deadline, owner = sub(w, 1, 1), u32(w, 2), u48(w, 6), waiter_owner(w)
      local held_already = (x and holder_owner(x) == owner) or redis.call('HEXISTS', readers, owner) == 1
      if not held_already and (x or (mode == 'x' and count > 0 and listens(head))) then
        break
      end
      dequeue(head, w)
      if held_already then
        -- Another one of the same owner came first: it asks again and hears whether it may hold it too.
        wake(head, 'g')
      elseif deadline == 0 or deadline > now() then
        local token = next_token(0)
        local heard = wake(head, 'g' .. p64(token))
        if type(heard) == 'number' and heard > 0 then
          local expires = now() + ttl
          local record = build_holder(token, expires, now(), ttl, head, owner, sub(w, 19 + #owner))
          put_holder(mode, owner, record, token)
          if mode == 'x' then
            x = record
          else
            count = count + 1
          end
        end
      end
    end
  end
  return x, count
end

-- Who waits sleeps until the time is over that the holder had when it asked. If the next holder has less, it might die
-- unnoticed: the first in line are told to ask again.
local function hurry(before, soonest)
  if soonest < before then
    local first = redis.call('ZRANGE', queue, 0, 2)
    for i = 1, #first do
      wake(first[i], 'r')
    end
  end
end
