from rolecall.roles.worker.child import main

main()
