-- event_bury: moves an event that cannot be handled to the dead letters.
--
-- KEYS[1] queue
-- KEYS[2] dead letters
-- ARGV[1] its id
-- ARGV[2] why: failed, unreadable
-- ARGV[3] how often it was delivered
-- ARGV[4] what went wrong last
-- ARGV[5] consumer
-- ARGV[6] about so many dead letters are kept
-- returns: its id among the dead letters, empty if it was gone already, or the text HELD if another consumer holds it.
-- errors: HELD
local queue, dead, id = KEYS[1], KEYS[2], ARGV[1]
local pending = redis.pcall('XPENDING', queue, 'q', id, id, 1)
if type(pending) ~= 'table' or pending.err or not pending[1] then
  return ''
end
if pending[1][2] ~= ARGV[5] then
  return 'HELD'
end
--- @include "lib/bury"
return bury(queue, dead, id, {
  why = ARGV[2], deliveries = ARGV[3], said = ARGV[4], consumer = ARGV[5], most = ARGV[6],
})
