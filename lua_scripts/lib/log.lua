--- @include "lib/frame"
-- The log entry is the first write of a commit: it meets an out-of-memory server, a missing right or a wrong type
-- while nothing has changed yet. Operations that free memory may go on without it (`HDEL` is allowed then, and after
-- one write a script is no longer held back); once the server was found full, nothing else in the group is.
local memory_full = false

local function append_entry(log, due, frames, meta, operation, freeing)
  if memory_full and not freeing then
    return nil, memory_full
  end
  local id = redis.pcall('XADD', log, '*', 'c', frames, 'm', meta, 'o', operation)
  if type(id) == 'string' then
    return id
  end
  local said = id.err or 'XADD failed'
  if string.find(said, 'OOM', 1, true) then
    memory_full = said
    if freeing then
      redis.call('HDEL', due .. ':none', 'none')
      return redis.call('XADD', log, '*', 'c', frames, 'm', meta, 'o', operation)
    end
  end
  return nil, said
end
