-- restore_load: lays down whole records of scopes that are being restored; sent twice, they are laid down once.
--
-- KEYS[1] restores (see restore_begin)
-- KEYS[2] the restore
-- KEYS[3...] the staged hashes
-- ARGV[1] the restore's id
-- ARGV[2] its revision
-- ARGV[3...] per staged hash: its name, what the registry says of it (lib/staged); head (13 bytes: records 4, their bytes
--            with keys 6, expiries 2, 1 if the scope's own record is given); from fence to policy what that record says,
--            if it is given; per record key and record; per expiry ms and key
-- returns: OK, GONE if the restore was cleaned up, or MIXED and the name of a scope that two are to be restored to.
--- @include "lib/staged"
restores, registry = KEYS[1], KEYS[2]
if not check_restore(ARGV[1], ARGV[2]) then
  return 'GONE'
end
local at = 3
for i = 3, #KEYS do
  local s, head = open_staged(KEYS[i], ARGV[at], ARGV[at + 1]), ARGV[at + 2]
  if not s then
    return 'MIXED ' .. ARGV[at + 1]
  end
  at = at + 3
  local records, expiries = u32(head, 1), u16(head, 11)
  if byte(head, 13) == 1 then
    s.tail, at = ARGV[at], at + 1
  end
  local last = at + 2 * records - 1
  if s.count > 0 then
    for j = at, last, 2 do
      if redis.call('HSTRLEN', s.key, ARGV[j]) > 0 then -- a scan may find a key twice
        uncount(s, ARGV[j], redis.call('HGET', s.key, ARGV[j]))
      end
    end
  end
  for first = at, last, 2000 do
    redis.call('HSET', s.key, unpack(ARGV, first, math.min(first + 1999, last)))
  end
  s.count, s.size, at = s.count + records, s.size + u48(head, 5), last + 1
  last = at + 2 * expiries - 1
  for first = at, last, 2000 do
    redis.call('ZADD', s.key .. ':ttl', unpack(ARGV, first, math.min(first + 1999, last)))
  end
  at = last + 1
  close_staged(s, ARGV[2])
end
return 'OK'
