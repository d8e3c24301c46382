-- restore_check: drops what has expired from scopes that are being restored, and counts what is there.
--
-- KEYS[1] restores (see restore_begin)
-- KEYS[2] the restore
-- KEYS[3...] the staged hashes
-- ARGV[1] the restore's id
-- ARGV[2] its revision
-- ARGV[3] most keys to drop
-- ARGV[4...] per staged hash: its name, what the registry says of it (lib/staged)
-- returns: 1 if more has expired, then per staged hash: counted records, their bytes, fields without the scope's own.
--          Or nothing if the restore was cleaned up.
--- @include "lib/staged"
restores, registry = KEYS[1], KEYS[2]
if not check_restore(ARGV[1], ARGV[2]) then
  return {}
end
local left, found, at = tonumber(ARGV[3]), { 0 }, 4
for i = 3, #KEYS do
  local s = open_staged(KEYS[i], ARGV[at], ARGV[at + 1])
  at = at + 2
  if not s then
    return {}
  end
  local over = redis.call('ZRANGEBYSCORE', s.key .. ':ttl', '-inf', format('%.0f', now()), 'LIMIT', 0, left)
  for j = 1, #over do
    local old = redis.call('HGET', s.key, over[j])
    if old then
      uncount(s, over[j], old)
      redis.call('HDEL', s.key, over[j])
    end
  end
  left = left - #over
  if #over > 0 or s.empty then
    close_staged(s, ARGV[2])
  end
  local n = #found
  found[n + 1], found[n + 2], found[n + 3] = s.count, s.size, redis.call('HLEN', s.key) - 1
  if left == 0 then
    found[1] = 1
    return found
  end
end
return found
