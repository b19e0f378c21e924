// Package transporttest tests carriers: conformance suites that every Folder, Stream, Dialer and Submitter passes, a
// Station that records, folders that damage what is put into them (seeded, so a failure can be repeated), and a pair
// of stream ends joined by a simulated line. All of it runs on the virtual clock of testing/synctest, too.
package transporttest
