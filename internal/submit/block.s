// This file lets sys_linux.go declare functions whose bodies the runtime has.
