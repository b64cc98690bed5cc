"""The digits: real data, a teacher and a VAE that come with the package.

    digits.py         the data set, and a judge that reads digits
    prepare.py        its shards;  judge.py  how good the generated digits are
    classifier.py     pretrained features, for discriminators
    train_teacher.py, train_classifier.py  how assets/ were made

Imports: everything but commands.
"""
