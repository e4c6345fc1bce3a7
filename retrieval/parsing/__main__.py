from rolecall.retrieval.parsing.child import main

main()
