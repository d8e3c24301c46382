-- lease_break: takes a lease from its holder, on somebody's word and with a reason in the log; the next in line has it.
--
-- KEYS[1] the lease (see lease_acquire)
-- KEYS[2] queue
-- KEYS[3] readers
-- KEYS[4] registry
-- KEYS[5] waits
-- KEYS[6] log stream of the shard
-- KEYS[7] due: sorted set of the shard's scopes
-- KEYS[8] the scope's hash
-- ARGV[1] token of the holder that is meant: 8 bytes; or empty for all that hold it
-- ARGV[2] the scope's printed name
-- ARGV[3] what the log says about it: name, holder, reason
-- ARGV[4] log metadata: who did it
-- ARGV[5] nonce of this break: sent twice, it hits the same holders
-- ARGV[6] what the holders are told, and whoever looks at the lease: MessagePack list of reason and actor
-- returns: how many holders lost it, the revision of the log entry or nil.
--- @include "lib/scope"
--- @include "lib/log"
--- @include "lib/bell"
local lease, queue, readers, registry, waits = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
--- @include "lib/lease"
local token, said = ARGV[1], ARGV[3]
local before = redis.call('HGET', lease, 'broken')
if before and sub(before, 1, 12) == ARGV[5] then
  local count, id = string.match(sub(before, 13), '^(%d+) (.*)$')
  return { tonumber(count), id }
end
local x = holders()
local meant = {}
if x and (token == '' or sub(x, 1, 8) == token) then
  meant[1] = x
end
local all = redis.call('HVALS', readers)
for i = 1, #all do
  if token == '' or sub(all[i], 1, 8) == token then
    meant[#meant + 1] = all[i]
  end
end
if #meant == 0 then
  return { 0 }
end
local s = open_scope(KEYS[8], ARGV[2])
fetch_scope(s)
local entry = '\1' .. frame(frame_head(BROKEN, 0, 0, '\0\0', '', #said), s, false, NONE10, '', '', said)
local id = append_freeing(KEYS[6], KEYS[7], entry, ARGV[4], string.rep('\0', 14)) -- also when the server is full
for i = 1, #meant do
  local r = meant[i]
  if r == x then
    redis.call('HDEL', lease, 'x')
  else
    redis.call('HDEL', readers, (holder_owner(r)))
  end
  note_end(r, r == x and 3 or 13, now(), ARGV[6])
  local nonces = holds_of(r)
  for at = 1, #nonces, 12 do
    wake(sub(nonces, at, at + 11), 'b' .. ARGV[6])
  end
end
if not s.damaged then
  local was = s.rev
  s.rev = pack_revision(id)
  flush_scope(s, KEYS[7])
  local heard = redis.pcall('PUBLISH', s.key, s.rev .. was)
  if heard ~= 0 and type(heard) == 'number' then
    tell(KEYS[6], s, was)
  end
end
redis.call('HSET', lease, 'broken', ARGV[5] .. #meant .. ' ' .. id)
local served = serve(holders())
hurry(u48(meant[1], 9), soonest_expiry(served))
note_quiet()
return { #meant, id }
