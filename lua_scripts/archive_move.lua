-- archive_move: notes how far the archive of a shard reaches, and keeps the log from there on; or tells who moved it.
--
-- KEYS[1] ctl: the shard's settings
-- ARGV[1] the position that is expected there, or empty for none
-- ARGV[2] the new one
-- ARGV[3] the revision from which the log is to be kept
-- ARGV[4] 1 if it is known that an earlier hold broke
-- returns: 1 if it was moved, else 0; server time in ms.
--- @include "lib/clock"
local ctl = KEYS[1]
if (redis.call('HGET', ctl, 'archive') or '') ~= ARGV[1] then
  return { 0, now() }
end
redis.call('HSET', ctl, 'archive', ARGV[2], 'hold:archive', ARGV[3])
if ARGV[4] == '1' then
  redis.call('HDEL', ctl, 'broken:archive')
end
return { 1, now() }
