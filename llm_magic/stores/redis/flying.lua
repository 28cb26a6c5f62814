-- Gives id and owner of the open call for a key, or nothing.
local id, owner = flying(ARGV[2])
return id and { id, owner } or {}
