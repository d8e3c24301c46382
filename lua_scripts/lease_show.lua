-- lease_show: everything about one lease, as of one moment; nothing is changed.
--
-- KEYS[1] the lease (see lease_acquire)
-- KEYS[2] queue
-- KEYS[3] readers
-- ARGV[1] most waiters to return
-- ARGV[2] prefix of the channels that wake clients
-- returns: the server's time in ms; the last token or nil; mode and record of each holder; how many wait; per waiter its nonce, its
--          record and 1 if its client listens, else 0; the ended holds: 1 byte how, 6 bytes when, the holder's record.
--- @include "lib/clock"
local function hex(raw)
  return (string.gsub(raw, '.', function(c) return format('%02x', byte(c)) end))
end

local found, waiters, ended = {}, {}, {}
local x = redis.call('HGET', KEYS[1], 'x')
if x and x ~= '' and u48(x, 9) > now() then
  found[1], found[2] = 'x', x
end
local all = redis.call('HVALS', KEYS[3])
for i = 1, #all do
  if u48(all[i], 9) > now() then
    found[#found + 1], found[#found + 2] = 's', all[i]
  end
end
local nonces = ARGV[1] == '0' and {} or redis.call('ZRANGE', KEYS[2], 0, tonumber(ARGV[1]) - 1)
for i = 1, #nonces do
  local w = redis.call('HGET', KEYS[1], 'w:' .. nonces[i])
  if w then
    local reply = redis.pcall('PUBSUB', 'NUMSUB', ARGV[2] .. hex(sub(nonces[i], 1, 8)))
    local heard = type(reply) == 'table' and not reply.err and tonumber(reply[2]) == 0 and 0 or 1
    waiters[#waiters + 1], waiters[#waiters + 2], waiters[#waiters + 3] = nonces[i], w, heard
  end
end
local last = tonumber(redis.call('HGET', KEYS[1], 'ended') or '0')
for n = last, math.max(1, last - 15), -1 do
  ended[#ended + 1] = redis.call('HGET', KEYS[1], 'h:' .. n % 16)
end
return { format('%.0f', now()), redis.call('HGET', KEYS[1], 't'), found, redis.call('ZCARD', KEYS[2]), waiters, ended }
