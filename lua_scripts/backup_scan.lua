-- backup_scan: some fields of a hash with their values, up to a size, as they lie there.
--
-- KEYS[1] the hash of a scope, or of a map
-- ARGV[1] cursor, "0" to begin
-- ARGV[2] the server process that gave the cursor; at any other one the page is the first
-- ARGV[3] about how many bytes to return
-- returns: the next cursor ("0": that was all), this server process, then fields and values in turn.
--- @include "lib/process"
local process, most = server_process(), tonumber(ARGV[3])
local cursor = ARGV[2] == process and ARGV[1] or '0'
local answer, n, size, count = { cursor, process }, 2, 0, 8
repeat
  local page = redis.call('HSCAN', KEYS[1], cursor, 'COUNT', count)
  local found = page[2]
  cursor = page[1]
  for i = 1, #found do
    n = n + 1
    answer[n] = found[i]
    size = size + #found[i]
  end
  -- Values are of any size: as many as are left, if those that follow are like those before.
  if n > 2 then
    count = math.max(1, math.min(500, math.floor((most - size) * (n - 2) / (2 * size))))
  else
    count = math.min(500, count * 2)
  end
until cursor == '0' or size >= most
answer[1] = cursor
return answer
