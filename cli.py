from surgery.commands import main

main()
