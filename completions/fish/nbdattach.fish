# SPDX-License-Identifier: GPL-2.0-or-later
# The program itself knows what fits, by click's protocol: "type,word<Tab>help" a line. click's own function is not
# used: it leaves out what begins with --option=.
function __nbdattach_offers
    set -l token (commandline -ct)
    set -l option (string match -r -- '^--[^=]+=' "$token")
    for line in (env _NBDATTACH_COMPLETE=fish_complete COMP_WORDS=(commandline -cp | string collect) "COMP_CWORD=$token" nbdattach 2>/dev/null)
        switch $line
            case 'plain,*'
                echo "$option"(string sub -s 7 -- $line)
            case 'file,*'
                string replace -r -- '^' "$option" (__fish_complete_path (string sub -s 6 -- $line))
        end
    end
end
complete --command nbdattach --no-files --arguments '(__nbdattach_offers)'
