-- event_replay: puts dead letters back into their queue, as new events at its end.
--
-- KEYS[1] queue
-- KEYS[2] dead letters
-- KEYS[3] idle: the subscriptions of which a consumer waits for the bell
-- ARGV[1] name of the subscription
-- ARGV[2] the queue's bell
-- ARGV[3...] ids of the dead letters
-- returns: how many were put back; or the text GONE if there is no such subscription.
-- errors: GONE
local queue, dead, idle = KEYS[1], KEYS[2], KEYS[3]
local groups = redis.pcall('XINFO', 'GROUPS', queue)
if type(groups) ~= 'table' or groups.err or #groups == 0 then
  return 'GONE'
end
local back = 0
for i = 3, #ARGV do
  local letter = redis.call('XRANGE', dead, ARGV[i], ARGV[i])[1]
  if letter then
    redis.call('XADD', queue, '*', 'b', letter[2][2])
    redis.call('XDEL', dead, ARGV[i])
    back = back + 1
  end
end
if back > 0 and redis.call('HDEL', idle, ARGV[1]) == 1 then
  redis.pcall('PUBLISH', ARGV[2], 'n')
end
return back
