-- lease_renew: the holder of a lease keeps it for another while.
--
-- KEYS[1] the lease (see lease_acquire)
-- KEYS[2] readers
-- ARGV[1] x exclusive, s shared
-- ARGV[2] owner
-- ARGV[3] token: 8 bytes
-- ARGV[4] ttl in ms
-- returns: 1, ms until it expires; or 0, why it cannot (EXPIRED, TAKEN, GONE, LOST), the holder's record, or of one that is
--          gone how its hold ended, or nothing.
local lease = KEYS[1]
local floor, format, byte, char, sub = math.floor, string.format, string.byte, string.char, string.sub
local t = redis.call('TIME')
local now = t[1] * 1000 + floor(t[2] / 1000)
local r
if ARGV[1] == 'x' then
  r = redis.call('HGET', lease, 'x')
else
  r = redis.call('HGET', KEYS[2], ARGV[2])
end
if not r or r == '' then
  -- A lease that ended here is remembered; one that is not known at all was lost with the server's data.
  local n = redis.call('HGET', lease, 'ended')
  local ended = n and redis.call('HGET', lease, 'h:' .. n % 16)
  return { 0, redis.call('EXISTS', lease) == 1 and 'GONE' or 'LOST', ended or nil }
end
local a, b, c, d, e, f = byte(r, 9, 14)
local expires = ((((a * 256 + b) * 256 + c) * 256 + d) * 256 + e) * 256 + f
local h, i = byte(r, 25, 26)
local owner_at = 27 + (h * 256 + i) * 12
if sub(r, 1, 8) ~= ARGV[3] or sub(r, owner_at + 1, owner_at + byte(r, owner_at)) ~= ARGV[2] then
  return { 0, 'TAKEN', r }
elseif expires <= now then
  return { 0, 'EXPIRED', r }
end
local ttl = tonumber(ARGV[4])
if h * 256 + i > 1 then
  expires = math.max(expires, now + ttl) -- another hold of the same owner may count on more
else
  expires = now + ttl
end
local packed = char(floor(expires / 1099511627776), floor(expires / 4294967296) % 256, floor(expires / 16777216) % 256,
  floor(expires / 65536) % 256, floor(expires / 256) % 256, expires % 256)
local packed_ttl = char(floor(ttl / 16777216), floor(ttl / 65536) % 256, floor(ttl / 256) % 256, ttl % 256)
r = sub(r, 1, 8) .. packed .. sub(r, 15, 20) .. packed_ttl .. sub(r, 25)
local key, field = lease, 'x'
if ARGV[1] ~= 'x' then
  key, field = KEYS[2], ARGV[2]
end
local done = redis.pcall('HSET', key, field, r)
if type(done) == 'table' then
  -- A full server lets a script write that has freed something first. Who holds a lease must not lose it for that.
  redis.call('HDEL', key, '')
  redis.call('HSET', key, field, r)
end
return { 1, format('%.0f', ttl) }
