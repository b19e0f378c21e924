module mochila

go 1.26
