-- rights: which commands of a commit the user may not run; asked when a client connects, because a right that is
-- missing after the log entry was written would leave half a commit. Nothing is changed.
--
-- KEYS[1] ctl: the shard's settings, which exist
-- KEYS[2] a key of the namespace that does not exist
-- ARGV[1] the format that stands in ctl
-- returns: the names of the commands that are denied.
local ctl, none = KEYS[1], KEYS[2]
local probes = {
  { 'XADD', none, 'NOMKSTREAM', '*', 'a', 'b' },
  { 'HSET', ctl, 'format', ARGV[1] }, -- as it is
  { 'SADD', ctl, 'a' }, { 'RPUSH', ctl, 'a' }, -- of another type, so refused
  { 'ZADD', none, 'XX', 0, 'a' }, { 'RENAME', none, none }, { 'COPY', none, ctl },
  { 'HMGET', none, 'a' }, { 'HEXISTS', none, 'a' }, { 'HSTRLEN', none, 'a' }, { 'HDEL', none, 'a' },
  { 'ZREM', none, 'a' }, { 'SREM', none, 'a' }, { 'LLEN', none }, { 'HLEN', none }, { 'EXISTS', none },
  { 'PEXPIRE', none, 1 }, { 'PERSIST', none }, { 'UNLINK', none }, { 'TIME' },
  { 'SCARD', none }, { 'ZCARD', none },
}
local denied = {}
for i = 1, #probes do
  local reply = redis.pcall(unpack(probes[i]))
  local said = type(reply) == 'table' and reply.err and tostring(reply.err)
  if said and (string.find(said, 'NOPERM', 1, true) or string.find(said, "can't run this command", 1, true)
    or string.find(said, 'ACL failure in script', 1, true) or string.find(said, "can't access at least one of the keys", 1, true)) then
    denied[#denied + 1] = probes[i][1]
  end
end
return denied
