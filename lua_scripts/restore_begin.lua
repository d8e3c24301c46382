-- restore_begin: marks in the log that a restore begins; the entry's id is the revision that all its records get.
-- Asked again it tells the first answer.
--
-- KEYS[1] log stream of the shard
-- KEYS[2] restores: sorted set of the restores that are going on, by when they were last heard of
-- KEYS[3] the restore: r its revision, s the last batch of changes, and by name what is laid down
-- ARGV[1] the restore's id
-- ARGV[2] frames of the entry
-- ARGV[3] log metadata
-- returns: the revision, ten bytes.
--- @include "lib/clock"
--- @include "lib/revision"
local begun = redis.call('HGET', KEYS[3], 'r')
if begun then
  return begun
end
local id = redis.call('XADD', KEYS[1], '*', 'c', ARGV[2], 'm', ARGV[3], 'o', string.rep('\0', 14))
local revision = pack_revision(id)
redis.call('HSET', KEYS[3], 'r', revision)
redis.call('ZADD', KEYS[2], format('%.0f', now()), ARGV[1])
return revision
