-- scan: one page of a scope's keys, without those that have expired.
--
-- KEYS[1] the scope's hash
-- ARGV[1] cursor, "0" to begin
-- ARGV[2] glob that the key must match, or empty
-- ARGV[3] about how many to look at
-- ARGV[4] 1 to return the records too, 2 to return their bytes
-- ARGV[5] the server process that gave the cursor; at any other one the page is the first
-- returns: the next cursor ("0": that was all), this server process, then keys, or keys and records or their bytes in turn.
--- @include "lib/process"
--- @include "lib/scope"
local s, process = open_scope(KEYS[1], ''), server_process()
local from = ARGV[5] == process and ARGV[1] or '0'
local page
if ARGV[2] == '' then
  page = redis.call('HSCAN', s.key, from, 'COUNT', ARGV[3])
else
  page = redis.call('HSCAN', s.key, from, 'MATCH', ARGV[2], 'COUNT', ARGV[3])
end
local answer, found = { page[1], process }, page[2]
for i = 1, #found, 2 do
  local key = found[i]
  if key ~= '$$' then
    s.recs[key] = found[i + 1]
    local _, gone = live(s, key)
    if not gone then
      answer[#answer + 1] = key
      if ARGV[4] == '1' then
        answer[#answer + 1] = found[i + 1]
      elseif ARGV[4] == '2' then
        answer[#answer + 1] = #found[i + 1]
      end
    end
  end
end
return answer
