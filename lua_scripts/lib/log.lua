--- @include "lib/frame"
-- The log entry is the first write of a commit: it meets an out-of-memory server, a missing right or a wrong type
-- while nothing has changed yet. Operations that free memory may go on without room for it: `HDEL` is allowed then,
-- and after one write a script is no longer held back.
local function append_freeing(log, due, frames, meta, operation)
  redis.call('HDEL', due .. ':none', 'none')
  return redis.call('XADD', log, '*', 'c', frames, 'm', meta, 'o', operation)
end
