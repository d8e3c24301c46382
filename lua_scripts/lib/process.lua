-- Which server process answers. A cursor of HSCAN or ZSCAN is a place in the table of the process that gave it:
-- the one after a restart or failover hashes with another seed, and would leave out keys without a word.
local function server_process()
  local could_ask, may = pcall(redis.acl_check_cmd, 'INFO', 'server') -- before Redis 7 this cannot be asked
  if may or not could_ask then
    local info = redis.pcall('INFO', 'server')
    local id = type(info) == 'string' and string.match(info, 'run_id:(%x+)')
    if id then
      return string.sub(id, 1, 16)
    end
  end
  -- Without the right to INFO: where this process's interpreter happens to lie in memory.
  return string.match(tostring(redis.call), '0x(%x+)') or ''
end
