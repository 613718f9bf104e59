"""Tests of the Python client against the server at DATAKIT."""

import errno
import os
import threading
import unittest

from datakit import Conflict, DataKit, DataKitError, NotFastForward, NotFound


class Client(unittest.TestCase):
    def setUp(self):
        self.dk = DataKit(os.environ["DATAKIT"])
        self.branch = self.dk.branch("py-" + self.id().rsplit(".", 1)[1].replace("_", "-"))

    def tearDown(self):
        self.dk.close()

    def test_what_is_committed_is_read(self):
        self.assertIsNone(self.branch.head())
        with self.branch.transaction("First") as tx:
            tx.write("a/b/c", "deep\n")
            tx.write("top", b"\x00\xff" * 300000)
        self.assertIn(self.branch.name, self.dk.branches())
        snapshot = self.dk.snapshot(self.branch.head())
        self.assertEqual(snapshot.message(), "First")
        self.assertEqual(snapshot.parents(), [])
        self.assertEqual(snapshot.tree.read("a/b/c"), b"deep\n")
        self.assertEqual(snapshot.tree.read("top"), b"\x00\xff" * 300000)
        self.assertEqual(sorted(snapshot.tree.list()), ["a", "top"])
        with self.assertRaises(NotFound):
            snapshot.tree.read("absent")
        with self.assertRaises(DataKitError) as refused:
            snapshot.tree.read("top/below")
        self.assertEqual(refused.exception.errno, errno.ENOTDIR)

    def test_an_exception_gives_up(self):
        try:
            with self.branch.transaction() as tx:
                tx.write("f", "x")
                raise KeyError
        except KeyError:
            pass
        self.assertIsNone(self.branch.head())

    def test_the_same_file_conflicts_and_is_tried_again(self):
        self.branch.update(lambda tx: tx.write("f", "0"))
        one, two = self.branch.transaction(), self.branch.transaction()
        one.write("f", "1")
        two.write("f", "2")
        one.commit()
        with self.assertRaises(Conflict):
            two.commit()
        two.close()
        self.assertEqual(self.branch.tree.read("f"), b"1")

        def add(name):
            # Signed: two that write the same bytes do not conflict.
            def change(tx):
                tx.write("f", f"{int(tx.read('f').split()[0]) + 1} {name}")

            with DataKit(os.environ["DATAKIT"]) as dk:
                for _ in range(5):
                    dk.branch(self.branch.name).update(change, attempts=100)

        threads = [threading.Thread(target=add, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(self.branch.tree.read("f").split()[0], b"21")

    def test_merges_list_conflicts(self):
        base = self.branch.update(lambda tx: tx.write("f", "base\n"))
        other = self.dk.branch(self.branch.name + "-other")
        other.fast_forward(base)
        theirs = other.update(lambda tx: tx.write("f", "theirs\n"))
        self.branch.update(lambda tx: tx.write("f", "ours\n"))
        with self.branch.transaction("Merge") as tx:
            self.assertEqual(tx.merge(theirs), ["f"])
            tx.write("f", "both\n")
            self.assertEqual(tx.conflicts(), [])
        self.assertEqual(len(self.dk.snapshot(self.branch.head()).parents()), 2)
        self.assertEqual(self.dk.snapshot(self.branch.head()).diff(base), [("*", "f")])
        with self.assertRaises(NotFastForward):
            other.fast_forward(self.branch.update(lambda tx: tx.write("g", "")))
            self.branch.fast_forward(base)

    def test_watches_tell_and_end(self):
        watch = self.branch.watch("dir/f")
        seen = iter(watch)
        self.assertIsNone(next(seen))
        self.branch.update(lambda tx: tx.write("dir/f", "x"))
        self.assertTrue(next(seen).startswith("F-"))
        threading.Timer(0.2, watch.close).start()
        self.assertEqual(list(seen), [])

        heads = iter(self.branch.watch())
        self.assertEqual(next(heads), self.branch.head())


if __name__ == "__main__":
    unittest.main()
