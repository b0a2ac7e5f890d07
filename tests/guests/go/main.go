// A program in Go, as any other: arguments, environment, a file on a mount, standard input, and a code of its own.
package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

func main() {
	fmt.Println(os.Args[1], os.Getenv("NAME"))
	file := os.Args[1] + "/from-go"
	if err := os.WriteFile(file, []byte("text"), 0o644); err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		fmt.Println(err)
		os.Exit(2)
	}
	fmt.Println(string(text))
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		fmt.Println(strings.ToUpper(lines.Text()))
	}
	os.Exit(7)
}
