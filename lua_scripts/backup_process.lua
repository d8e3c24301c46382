-- backup_process: which server process answers; what was read between two answers comes from the same one.
--
-- KEYS[1] any key of the shard, which need not be there
-- returns: this server process.
--- @include "lib/process"
local _ = KEYS[1] -- named, so that the call goes to its shard
return server_process()
