-- hooks_forget: removes executions from the history and from its index; sent twice it does no more.
--
-- KEYS[1] history: the stream of executions
-- KEYS[2] index: sorted set
-- ARGV[1...] per execution six: its id, correlation, hook, point, execution id, priority
-- returns: how many went.
--- @include "lib/hooks"
local history, index = KEYS[1], KEYS[2]
local NUL, gone = '\0', 0
for i = 1, #ARGV, 6 do
  local place = padded_id(ARGV[i])
  gone = gone + redis.call('XDEL', history, ARGV[i])
  redis.call('ZREM', index, 'c' .. NUL .. ARGV[i + 1] .. NUL .. place, 'h' .. NUL .. ARGV[i + 2] .. NUL .. place,
    'p' .. NUL .. ARGV[i + 3] .. NUL .. place, 'x' .. NUL .. ARGV[i + 4] .. NUL .. place,
    't' .. NUL .. place .. NUL .. ARGV[i + 5])
end
return gone
