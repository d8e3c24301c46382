-- entries: one scope's part of some log entries, in the order asked for, up to a size.
--
-- KEYS[1] log stream of the shard
-- ARGV[1] the scope's printed name
-- ARGV[2] the entries' revisions, 10 bytes each
-- ARGV[3] most bytes; the first comes whatever its size
-- returns: the log's oldest entry if the next one asked for is not there, else nil; then per entry: id, frames,
--          metadata, operation.
--- @include "lib/revision"
--- @include "lib/frames_of"
local revisions, answer, size = ARGV[2], { false }, 0
for at = 1, #revisions, 10 do
  local id = id_of(sub(revisions, at, at + 9))
  local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
  local frames = entry and frames_of(entry[2][2], ARGV[1])
  if not frames then
    if #answer == 1 then
      local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
      answer[1] = oldest and oldest[1] or ''
    end
    break
  end
  size = size + #frames
  if size > tonumber(ARGV[3]) and #answer > 1 then
    break
  end
  local n = #answer
  answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = id, frames, entry[2][4], entry[2][6]
end
return answer
