// This file lets main.go declare a function whose body the runtime has.
