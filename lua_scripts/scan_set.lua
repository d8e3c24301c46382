-- scan_set: one page of the members of a sorted set.
--
-- KEYS[1] the sorted set
-- ARGV[1] cursor, "0" to begin
-- ARGV[2] the server process that gave the cursor; at any other one the page is the first
-- ARGV[3] glob that the member must match, or empty
-- ARGV[4] about how many to look at
-- returns: the next cursor ("0": that was all), this server process, then members.
--- @include "lib/process"
local process = server_process()
local from = ARGV[2] == process and ARGV[1] or '0'
local page
if ARGV[3] == '' then
  page = redis.call('ZSCAN', KEYS[1], from, 'COUNT', ARGV[4])
else
  page = redis.call('ZSCAN', KEYS[1], from, 'MATCH', ARGV[3], 'COUNT', ARGV[4])
end
local answer, found = { page[1], process }, page[2]
for i = 1, #found, 2 do
  answer[#answer + 1] = found[i]
end
return answer
