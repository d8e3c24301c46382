-- restore_clean: removes what a restore laid down and did not put in place, a bounded number of scopes a call.
--
-- KEYS[1] restores (see restore_begin)
-- KEYS[2] trash: sets of generations left behind
-- ARGV[1] prefix of the shard's keys
-- ARGV[2] the restore's id; or nothing for those that were silent
-- ARGV[3] for how many ms
-- ARGV[4] most scopes in this call
-- returns: 1 if there is more to do, else 0; then the ids of those that were worked on.
--- @include "lib/restores"
local ids = { ARGV[2] }
if ARGV[2] == '' then
  ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', format('%.0f', now() - tonumber(ARGV[3])), 'LIMIT', 0, 1)
end
if #ids == 0 then
  return { 0 }
end
local more = clean_restore(KEYS[1], KEYS[2], ARGV[1], ids[1], tonumber(ARGV[4]))
return { (more or ARGV[2] == '') and 1 or 0, ids[1] }
