-- lease_release: gives back one hold of a lease, or the place in its queue; the next in line has it at once.
--
-- KEYS[1] the lease (see lease_acquire)
-- KEYS[2] queue
-- KEYS[3] readers
-- KEYS[4] registry
-- KEYS[5] waits
-- ARGV[1] x exclusive, s shared
-- ARGV[2] owner
-- ARGV[3] nonce of the hold or place; longer than 12 bytes for all holds of the owner
-- ARGV[4] token: 8 bytes, or empty if it is not known whether the lease was granted
-- returns: 1: given back; 2: it is held still, by earlier holds of the owner; 3: it waited and left the queue; or 0, why
--          there is nothing to give back (EXPIRED, TAKEN, GONE, LOST), the holder's record, or of one that is gone how its
--          hold ended, or nothing.
local lease, queue, readers, registry, waits = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local mode, owner, nonce, token = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

if mode == 'x' and #token == 8 then
  local byte, char, sub, floor, call = string.byte, string.char, string.sub, math.floor, redis.call
  local found = call('HMGET', lease, 'x', 'ended', 'b', 't')
  local r = found[1]
  if r and sub(r, 1, 8) == token and sub(r, 25, 38) == '\0\1' .. nonce then
    local t = call('TIME')
    local now = t[1] * 1000 + floor(t[2] / 1000)
    local function p48(n)
      local high, low = floor(n / 4294967296), n % 4294967296
      return char(floor(high / 256), high % 256,
        floor(low / 16777216), floor(low / 65536) % 256, floor(low / 256) % 256, low % 256)
    end
    local a, b, c, d, e, f = byte(r, 9, 14)
    local expires = ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f
    if expires > now then
      local n = tonumber(found[2] or '0') + 1
      local note, place = char(1) .. p48(now) .. r, 'h:' .. n % 16
      if not found[3] then
        -- Its only hold, and nobody waits: given back in line.
        local done = redis.pcall('HSET', lease, 'x', '', 'r', nonce, 'ended', n, place, note)
        if type(done) == 'table' then
          call('HDEL', lease, 'x') -- allowed when the server is full
        end
        return { 1 }
      end
      -- Its only hold, and who is first in line wants it alone: handed over in line.
      local head = call('ZRANGE', queue, 0, 0)[1]
      local w = head and call('HGET', lease, 'w:' .. head)
      if w and sub(w, 1, 1) == 'x' then
        local d1, d2, d3, d4, d5, d6 = byte(w, 6, 11)
        local deadline = ((((d1 * 256 + d2) * 256 + d3) * 256 + d4) * 256 + d5) * 256 + d6
        local t1, t2, t3, t4, length = byte(w, 2, 5)
        length = byte(w, 18)
        local next_owner, line = sub(w, 19, 18 + length), head .. lease .. '\n'
        local ttl = ((t1 * 256 + t2) * 256 + t3) * 256 + t4
        -- A shorter time than the others expect is for the long way, which tells them.
        if (deadline == 0 or deadline > now) and now + ttl >= expires and call('HGET', waits, next_owner) == line then
          local granted = math.max(tonumber(found[4]) + 1, t[1] * 1000000 + t[2])
          local packed = '\0' .. char(floor(granted / 281474976710656)) .. p48(granted % 281474976710656)
          local client = string.gsub(sub(head, 1, 8), '.', function(one) return string.format('%02x', byte(one)) end)
          local channel = string.match(lease, '^[^:]*:{%d+}') .. ':wake:' .. client
          local heard = redis.pcall('PUBLISH', channel, head .. 'g' .. packed)
          if type(heard) == 'number' and heard > 0 then
            local record = packed .. p48(now + ttl) .. p48(now) .. sub(w, 2, 5) .. '\0\1' .. head .. sub(w, 18)
            call('ZREM', queue, head)
            call('HDEL', waits, next_owner)
            call('HDEL', lease, 'w:' .. head)
            call('HSET', lease, 'x', record, 't', string.format('%.0f', granted), 'r', nonce, 'ended', n, place, note)
            return { 1 }
          end
        end
      end
    end
  end
end

local function contended()
  --- @include "lib/lease"

  -- Whether one of the ended holds that are remembered was this one, and was given back: others may have come since.
  local function released_before()
    local ended = redis.call('HMGET', lease, 'h:0', 'h:1', 'h:2', 'h:3', 'h:4', 'h:5', 'h:6', 'h:7', 'h:8', 'h:9', 'h:10',
      'h:11', 'h:12', 'h:13', 'h:14', 'h:15')
    for i = 1, ENDED do
      local h = ended[i]
      if h and byte(h, 1) % 10 == 1 and find_nonce(holds_of(sub(h, 8)), nonce) then
        return true
      end
    end
    return false
  end

  redis.call('HDEL', lease, '') -- allowed when the server is full, and so is all that follows
  local all = #nonce > 12
  local r
  if mode == 'x' then
    r = redis.call('HGET', lease, 'x')
  else
    r = redis.call('HGET', readers, owner)
  end
  if r == '' then
    r = nil
  end
  local ours = r and (token == '' or sub(r, 1, 8) == token) and holder_owner(r) == owner
    and (all and 1 or find_nonce(holds_of(r), nonce))
  if ours and u48(r, 9) > now() then
    local nonces = holds_of(r)
    nonces = all and '' or sub(nonces, 1, ours - 1) .. sub(nonces, ours + 12)
    if nonces ~= '' then
      put_holder(mode, owner, rebuild(r, u48(r, 9), u32(r, 21), nonces))
      redis.call('HSET', lease, 'r', nonce)
      return { 2 }
    end
    if mode == 'x' then
      redis.call('HDEL', lease, 'x')
    else
      redis.call('HDEL', readers, owner)
    end
    redis.call('HSET', lease, 'r', nonce)
    -- Holds that somebody else gave back are not named in the note: their holders are to hear of it.
    note_end(all and rebuild(r, u48(r, 9), u32(r, 21), '') or r, mode == 'x' and 1 or 11, now())
    if redis.call('EXISTS', queue) == 1 then
      local x = serve(holders())
      if x or mode == 'x' then
        hurry(u48(r, 9), soonest_expiry(x))
      end
    end
    note_quiet()
    return { 1 }
  end

  local w = redis.call('HGET', lease, 'w:' .. nonce)
  if w then
    local was_first = redis.call('ZRANK', queue, nonce) == 0
    dequeue(nonce, w)
    if was_first then
      serve(holders())
    end
    note_quiet()
    return { 3 }
  end
  if redis.call('HGET', lease, 'r') == nonce or (not all and released_before()) then
    return { 1 } -- the answer to the first time was lost on the way
  end
  if ours then
    return { 0, 'EXPIRED', r }
  elseif r then
    return { 0, 'TAKEN', r }
  end
  local n = redis.call('HGET', lease, 'ended')
  local ended = n and redis.call('HGET', lease, 'h:' .. n % ENDED)
  return { 0, redis.call('EXISTS', lease) == 1 and 'GONE' or 'LOST', ended or nil }
end
return contended()
