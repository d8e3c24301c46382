-- hooks_record: adds a batch of hook executions to the history, to its index and to their correlations; sent twice it
-- is added once. The index has members `c|<correlation>|<id>`, `h|<hook>|<id>`, `p|<point>|<id>`, `x|<execution>|<id>`
-- and `t|<id>|<priority>`, with a NUL for each bar, all of score 0.
--
-- KEYS[1] history: the stream of executions
-- KEYS[2] index: sorted set
-- KEYS[3] batch: the number of the last batch of this client
-- ARGV[1] number of the batch: each client counts up, and sends the next when it knows what became of the last
-- ARGV[2] how long the number is remembered, ms
-- ARGV[3] prefix of the shard's keys, with its colon
-- ARGV[4...] per execution seven: bytes, correlation, hook, point, execution id, priority, and the summary for the
--            correlation's stream, empty if it is in none
-- returns: how many were added; 0 if this batch was added before.
--- @include "lib/clock"
--- @include "lib/correlation"
--- @include "lib/hooks"
local history, index, batch = KEYS[1], KEYS[2], KEYS[3]
local last = redis.call('GET', batch)
if last and tonumber(last) >= tonumber(ARGV[1]) then
  return 0
end
local NUL, added = '\0', 0
for i = 4, #ARGV, 7 do
  -- The first write: it meets a full server or a missing right.
  local id = redis.call('XADD', history, '*', 'b', ARGV[i], 'n', ARGV[i + 5])
  local place = padded_id(id)
  redis.call('ZADD', index, 0, 'c' .. NUL .. ARGV[i + 1] .. NUL .. place, 0, 'h' .. NUL .. ARGV[i + 2] .. NUL .. place,
    0, 'p' .. NUL .. ARGV[i + 3] .. NUL .. place, 0, 'x' .. NUL .. ARGV[i + 4] .. NUL .. place,
    0, 't' .. NUL .. place .. NUL .. ARGV[i + 5])
  if ARGV[i + 6] ~= '' then
    local correlation = correlation_name(ARGV[i + 1])
    note_correlated(ARGV[3], correlation, 'h', ARGV[i + 6])
    correlation_active(ARGV[3], correlation, format('%.0f', now()))
  end
  added = added + 1
end
redis.call('SET', batch, ARGV[1], 'PX', ARGV[2])
return added
